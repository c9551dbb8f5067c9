using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// What expands compressed tokens: attention of long query blocks, and shortening.
internal sealed unsafe partial class LayerStorage
{
    // Compressed tokens that are dense at one time. For products in single precision the scores count too. On CUDA a segment of 8 key/value
    // heads of 128 takes 64 MiB: fewer segments are fewer operators to launch, which is what a few new tokens cost. On the CPU it stays near
    // the cores.
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

    /// <summary>Puts tokens back in the ring.</summary>
    internal void Return(Returning tokens)
    {
        _tailKeys[tokens.Slot].index_copy_(1, tokens.Ring, tokens.Keys);
        _tailValues[tokens.Slot].index_copy_(1, tokens.Ring, tokens.Values);
    }

    // One sequence's new tokens [1, heads, n, head_dim].
    private Tensor AttendRow(StepPlan plan, int row, Tensor query, Tensor keys, Tensor values, double? scale)
    {
        if (plan.Length(row) + plan.SinksBefore[row] == 0)
        {
            return DenseAttention.Causal(query, keys, values, scale, Options.SlidingWindow, Options.SinkTokens);
        }

        double factor = scale ?? 1 / Math.Sqrt(_shape.HeadDim);
        Tensor? fused = Options.SlidingWindow is null && PartialAttention.Serves(query) && DenseAttention.IsFinite(query)
            ? AttendFused(plan, row, query, keys, values, factor) : null;
        return fused ?? AttendByProducts(plan, row, query, keys, values, factor);
    }

    // By fused kernels: all queries see the whole past. A segment of compressed tokens at a time, and in the last one all that is dense. Null
    // on the CPU if a number is not finite.
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

    // A sequence's keys (or values) from a compressed token on, its sinks and its new tokens: [1, num_kv_heads, tokens, head_dim]. The order
    // of what comes before the new ones does not matter.
    private Tensor Gather(StepPlan plan, int row, int first, Tensor newTokens, bool ofKeys)
    {
        int slot = plan.Slots[row], compressed = plan.Attended(row), length = plan.Length(row), sinks = plan.SinksBefore[row];
        Tensor all = empty(
            [1, _shape.NumKvHeads, length - first + sinks + newTokens.size(2), _shape.HeadDim], dtype: _shape.DType, device: _shape.Device);
        long end = compressed - first;
        if (end > 0)
        {
            Decompress(ofKeys, slot, first, compressed - first, all);
        }

        if (sinks > 0)
        {
            Put((ofKeys ? Sinks!.Keys : Sinks!.Values)[slot].narrow(1, 0, sinks));
        }

        foreach (Tensor run in Window(ofKeys, slot, compressed, length - compressed))
        {
            Put(run);
        }

        Put(newTokens[0]);
        return all;

        void Put(Tensor tokens)
        {
            all[0].narrow(1, end, tokens.size(1)).copy_(tokens);
            end += tokens.size(1);
        }
    }

    // By products in single precision: the past is expanded a segment at a time, then come the tokens themselves.
    private Tensor AttendByProducts(StepPlan plan, int row, Tensor query, Tensor keys, Tensor values, double scale)
    {
        int length = plan.Length(row), compressed = plan.Attended(row), sinks = plan.SinksBefore[row];
        int slot = plan.Slots[row];
        int count = checked((int)query.shape[2]);
        Tensor rows = query[0].to(ScalarType.Float32).Times(scale).reshape(_shape.NumKvHeads, -1, _shape.HeadDim);
        long group = rows.shape[1] / count;
        OnlineSoftmax softmax = new(rows);
        softmax.Add(
            keys[0].to(ScalarType.Float32), values[0].to(ScalarType.Float32), Hidden(sinks + length, sinks + length, count, count, group));
        if (sinks > 0)
        {
            (Tensor k, Tensor v) = Sinks!.Of(slot, sinks);
            softmax.Add(k, v, hidden: null);
        }

        for (int first = FirstVisible(length); first < length;)
        {
            bool packed = first < compressed;
            int end = Math.Min(packed ? compressed : length, first + ProductTokens);
            using DisposeScope scope = NewDisposeScope();
            (Tensor k, Tensor v) = packed
                ? Expand(slot, first, end - first)
                : (cat([.. Window(ofKeys: true, slot, first, end - first)], 1), cat([.. Window(ofKeys: false, slot, first, end - first)], 1));
            Tensor? hidden = Options.SlidingWindow is null ? null : Hidden(sinks + length, sinks + first, end - first, count, group);
            softmax.Add(k.to(ScalarType.Float32), v.to(ScalarType.Float32), hidden);
            softmax.MoveToOuter();
            first = end;
        }

        return softmax.Result().reshape(query.shape);
    }

    // The first token that a query at a position sees in this layer.
    private int FirstVisible(int position) =>
        Options.SlidingWindow is int window ? (int)Math.Max(0, position + 1L - window) : 0;

    // True where a query at position + i must not look at token first + j: [group · queries, tokens]. Rows run through the heads of a
    // group, then through the queries.
    private Tensor Hidden(int position, int first, int tokens, int queries, long group)
    {
        Tensor distance = Scalars.Range(position, queries, _shape.Device).unsqueeze(1) - Scalars.Range(first, tokens, _shape.Device);
        Tensor hidden = distance.lt(Scalars.Zero);
        if (Options.SlidingWindow is int window)
        {
            Scalar limit = window;
            Tensor outside = distance.ge(limit);
            GC.KeepAlive(limit);
            outside.narrow(1, 0, Math.Clamp(Options.SinkTokens - first, 0, tokens)).zero_();
            hidden = hidden.logical_or(outside);
        }

        return hidden.repeat(group, 1);
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

    // Compressed keys (or values) of a sequence into the first tokens of a tensor [1, num_kv_heads, tokens, head_dim].
    private void Decompress(bool keys, int slot, int first, int count, Tensor destination)
    {
        NativeContext context = TensorAccess.Context(_shape.Device);
        NativeBlocks blocks = Blocks(keys, slot);
        NativeDense dense = TensorAccess.Dense(destination);
        NativeCall.Check(NativeMethods.Decompress(&context, 1, _shape.NumKvHeads, first, count, &blocks, &dense));
        GC.KeepAlive(destination);
    }

    // Dense keys (or values) of a sequence from the ring, [num_kv_heads, count, head_dim] in pieces: it may go round.
    private Tensor[] Window(bool ofKeys, int slot, int first, int count)
    {
        Tensor ring = (ofKeys ? _tailKeys : _tailValues)[slot];
        int place = first % _tailCapacity;
        int run = Math.Min(count, _tailCapacity - place);
        return count == 0 ? []
            : run == count ? [ring.narrow(1, place, run)]
            : [ring.narrow(1, place, run), ring.narrow(1, 0, count - run)];
    }

    // Where consecutive tokens lie in the ring.
    private Tensor Ring(int first, int count)
    {
        long[] places = new long[count];
        for (int i = 0; i < places.Length; i++)
        {
            places[i] = (first + i) % _tailCapacity;
        }

        return tensor(places, device: _shape.Device);
    }

    /// <summary>Tokens of a slot that go back to their places in the ring.</summary>
    internal sealed record Returning(int Slot, Tensor Ring, Tensor Keys, Tensor Values);
}
