using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// Expanding compressed tokens: for attention of long query blocks, and for shortening.
internal sealed unsafe partial class LayerStorage
{
    // Number of compressed tokens that are dense at a time. With products in single precision the scores count too. On CUDA a segment of 8
    // KV heads of 128 takes 64 MiB: fewer segments mean fewer operators to launch, which is what a few new tokens cost. On the CPU it stays
    // near the cores.
    private const int ProductTokens = 1024;
    private const int CpuFusedTokens = 2048;
    private const int CudaFusedTokens = 16384;

    /// <summary>Compressed tokens of a sequence that become dense again when it is shortened; null if there are none.</summary>
    internal Returning? Prepare(int slot, int compressed, int length)
    {
        int count = Math.Min(length, _table[slot].Compressed) - compressed;
        if (count <= 0)
        {
            return null;
        }

        (Tensor keys, Tensor values) = Expand(slot, compressed, count);
        return new Returning(slot, Ring(compressed, count), keys, values);
    }

    /// <summary>Returns tokens to the ring.</summary>
    internal void Return(Returning tokens)
    {
        _tailKeys[tokens.Slot].index_copy_(1, tokens.Ring, tokens.Keys);
        _tailValues[tokens.Slot].index_copy_(1, tokens.Ring, tokens.Values);
    }

    // One sequence's new tokens [1, heads, n, head_dim].
    private Tensor AttendRow(StepPlan plan, int row, Tensor query, Tensor keys, Tensor values, double? scale)
    {
        int length = plan.Length(row), past = length + plan.SinksBefore[row];
        if (past == 0)
        {
            return DenseAttention.Causal(query, keys, values, scale, Options.SlidingWindow, Options.SinkTokens);
        }

        if (Options.SlidingWindow is int window && window < past + query.size(2))
        {
            return AttendWindow(plan, row, query, keys, values, scale, window);
        }

        double factor = scale ?? 1 / Math.Sqrt(_shape.HeadDim);
        Tensor? fused = PartialAttention.Serves(query) && DenseAttention.IsFinite(query)
            ? AttendFused(plan, row, query, keys, values, factor) : null;
        return fused ?? AttendByProducts(plan, row, query, keys, values, factor);
    }

    // Everything that any of the queries sees is dense at a time. Sinks are seen from anywhere, so tokens between them and the window
    // need not be there.
    private Tensor AttendWindow(StepPlan plan, int row, Tensor query, Tensor keys, Tensor values, double? scale, int window)
    {
        int first = (int)Math.Clamp(plan.Length(row) + 1L - window, 0, plan.Attended(row));
        return DenseAttention.Causal(
            Computed(query),
            Computed(Gather(plan, row, first, keys, ofKeys: true)),
            Computed(Gather(plan, row, first, values, ofKeys: false)),
            scale,
            window,
            Options.SinkTokens).to(_shape.DType);

        // On the CPU in single precision, like a past without a window.
        Tensor Computed(Tensor tensor) => _shape.Device.type == DeviceType.CPU ? tensor.to(ScalarType.Float32) : tensor;
    }

    // By fused kernels: all queries see the whole past. One segment of compressed tokens at a time, and all dense tokens in the last one.
    // Null on the CPU if a number is not finite.
    private Tensor? AttendFused(StepPlan plan, int row, Tensor query, Tensor keys, Tensor values, double scale)
    {
        int slot = plan.Slots[row], compressed = plan.Attended(row), first = 0;
        int segment = _shape.Device.type == DeviceType.CPU ? CpuFusedTokens : CudaFusedTokens;
        PartialAttention? attended = null;
        for (; compressed - first > segment; first += segment)
        {
            using DisposeScope scope = NewDisposeScope();
            (Tensor k, Tensor v) = Expand(slot, first, segment);
            if (!DenseAttention.IsFinite(k, v))
            {
                return null;
            }

            PartialAttention part = PartialAttention.Full(query, k.unsqueeze(0), v.unsqueeze(0), scale);
            attended = (attended is null ? part : attended.Merge(part)).MoveToOuter();
        }

        (Tensor lastKeys, Tensor lastValues) = (Gather(plan, row, first, keys, ofKeys: true), Gather(plan, row, first, values, ofKeys: false));
        if (!DenseAttention.IsFinite(lastKeys, lastValues))
        {
            return null;
        }

        PartialAttention last = PartialAttention.Causal(query, lastKeys, lastValues, scale);
        return (attended is null ? last : attended.Merge(last)).Output.to(_shape.DType);
    }

    // By products in single precision. All queries see the whole past, which is expanded one segment at a time; the tokens themselves
    // follow.
    private Tensor AttendByProducts(StepPlan plan, int row, Tensor query, Tensor keys, Tensor values, double scale)
    {
        int slot = plan.Slots[row], length = plan.Length(row), compressed = plan.Attended(row), sinks = plan.SinksBefore[row];
        int count = checked((int)query.shape[2]);
        Tensor rows = query[0].to(ScalarType.Float32).Times(scale).reshape(_shape.NumKvHeads, -1, _shape.HeadDim);
        OnlineSoftmax softmax = new(rows);
        Tensor token = Scalars.Range(0, count, _shape.Device);
        softmax.Add(
            keys[0].to(ScalarType.Float32), values[0].to(ScalarType.Float32), token.unsqueeze(1).lt(token).repeat(rows.shape[1] / count, 1));
        if (sinks > 0)
        {
            (Tensor k, Tensor v) = Sinks!.Of(slot, sinks);
            softmax.Add(k, v, hidden: null);
        }

        for (int first = 0; first < length;)
        {
            bool packed = first < compressed;
            int end = Math.Min(packed ? compressed : length, first + ProductTokens);
            using DisposeScope scope = NewDisposeScope();
            (Tensor k, Tensor v) = packed
                ? Expand(slot, first, end - first)
                : (cat(Window(ofKeys: true, slot, first, end - first), 1), cat(Window(ofKeys: false, slot, first, end - first), 1));
            softmax.Add(k.to(ScalarType.Float32), v.to(ScalarType.Float32), hidden: null);
            softmax.MoveToOuter();
            first = end;
        }

        return softmax.Result().reshape(query.shape);
    }

    private Tensor Gather(StepPlan plan, int row, int first, Tensor newTokens, bool ofKeys) =>
        Gather(plan.Slots[row], plan.SinksBefore[row], first, plan.Attended(row), plan.Length(row), newTokens, ofKeys);

    // A sequence's keys (or values), dense [1, num_kv_heads, tokens, head_dim]: its sinks, its tokens from a compressed one on, new ones.
    private Tensor Gather(int slot, int sinks, int first, int compressed, int length, Tensor? newTokens, bool ofKeys)
    {
        Tensor all = empty(
            [1, _shape.NumKvHeads, sinks + length - first + (newTokens?.size(2) ?? 0), _shape.HeadDim], dtype: _shape.DType, device: _shape.Device);
        long end = sinks;
        if (sinks > 0)
        {
            all.narrow(2, 0, sinks).copy_((ofKeys ? Sinks!.Keys : Sinks!.Values)[slot].narrow(1, 0, sinks));
        }

        if (first < compressed)
        {
            Decompress(ofKeys, slot, first, compressed - first, all.narrow(2, end, compressed - first));
            end += compressed - first;
        }

        foreach (Tensor tokens in (ReadOnlySpan<Tensor>)[.. Window(ofKeys, slot, compressed, length - compressed), .. newTokens is null ? [] : (Tensor[])[newTokens]])
        {
            long count = tokens.size(-2);
            all.narrow(2, end, count).copy_(tokens);
            end += count;
        }

        return all;
    }

    // Compressed tokens of a sequence, dense [num_kv_heads, count, head_dim].
    private (Tensor Keys, Tensor Values) Expand(int slot, int first, int count)
    {
        return (Expanded(keys: true), Expanded(keys: false));

        Tensor Expanded(bool keys)
        {
            Tensor dense = empty([1, _shape.NumKvHeads, count, _shape.HeadDim], dtype: _shape.DType, device: _shape.Device);
            Decompress(keys, slot, first, count, dense);
            return dense[0];
        }
    }

    // Compressed keys (or values) of a sequence into a tensor [1, num_kv_heads, count, head_dim].
    private void Decompress(bool keys, int slot, int first, int count, Tensor destination)
    {
        NativeContext context = TensorAccess.Context(_shape.Device);
        NativeBlocks blocks = Blocks(keys, slot);
        NativeDense dense = TensorAccess.Dense(destination);
        NativeCall.Check(NativeMethods.Decompress(&context, 1, _shape.NumKvHeads, first, count, &blocks, keys ? KeyScalesFrom(slot) : null, &dense));
        GC.KeepAlive(destination);
    }

    // Dense keys (or values) of a sequence from the ring, [num_kv_heads, count, head_dim] in pieces: they may wrap around.
    private Tensor[] Window(bool ofKeys, int slot, int first, int count)
    {
        Tensor ring = (ofKeys ? _tailKeys : _tailValues)[slot];
        int place = first % _tailCapacity;
        int run = Math.Min(count, _tailCapacity - place);
        return count == 0 ? []
            : run == count ? [ring.narrow(1, place, run)]
            : [ring.narrow(1, place, run), ring.narrow(1, 0, count - run)];
    }

    // Places of consecutive tokens in the ring.
    private Tensor Ring(int first, int count)
    {
        long[] places = new long[count];
        for (int i = 0; i < places.Length; i++)
        {
            places[i] = (first + i) % _tailCapacity;
        }

        return tensor(places, device: _shape.Device);
    }

    /// <summary>Tokens of a slot that return to their places in the ring.</summary>
    internal sealed record Returning(int Slot, Tensor Ring, Tensor Keys, Tensor Values);
}
