using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// What expands compressed tokens: attention of long query blocks, and shortening.
internal sealed unsafe partial class LayerStorage
{
    private const int SegmentTokens = 1024;

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

    // One sequence's new tokens [1, heads, n, head_dim]: the past is expanded a segment at a time, then come the tokens themselves.
    private Tensor AttendRow(StepPlan plan, int row, Tensor query, Tensor keys, Tensor values, double? scale)
    {
        int length = plan.Length(row), compressed = plan.Attended(row), sinks = plan.SinksBefore[row];
        if (length + sinks == 0)
        {
            return DenseAttention.Causal(query, keys, values, scale, Options.SlidingWindow, Options.SinkTokens);
        }

        int slot = plan.Slots[row];
        int count = checked((int)query.shape[2]);
        Tensor rows = query[0].to(ScalarType.Float32).Times(scale ?? 1 / Math.Sqrt(_shape.HeadDim))
            .reshape(_shape.NumKvHeads, -1, _shape.HeadDim);
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
            int end = Math.Min(packed ? compressed : length, first + SegmentTokens);
            using DisposeScope scope = NewDisposeScope();
            (Tensor k, Tensor v) = packed ? Expand(slot, first, end - first) : Window(slot, first, end - first);
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
            NativeContext context = TensorAccess.Context(_shape.Device);
            NativeBlocks blocks = Blocks(keys, slot);
            NativeDense destination = TensorAccess.Dense(dense);
            NativeCall.Check(NativeMethods.Decompress(&context, 1, _shape.NumKvHeads, first, count, &blocks, &destination));
            return dense[0];
        }
    }

    // Dense tokens of a sequence from the ring.
    private (Tensor Keys, Tensor Values) Window(int slot, int first, int count)
    {
        Tensor ring = Ring(first, count);
        return (_tailKeys[slot].index_select(1, ring), _tailValues[slot].index_select(1, ring));
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
