using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// What expands compressed tokens: attention of long query blocks, and shortening.
public sealed unsafe partial class MustafarCache
{
    // A block of queries over a past: each sequence's past is expanded a segment at a time, then come the block's own tokens.
    private Tensor AttendChunk(Tensor query, Tensor keys, Tensor values, double? scale, ReadOnlySpan<int> counts)
    {
        Tensor output = zeros(query.shape, dtype: DType, device: Device);
        int tokens = checked((int)query.shape[2]);
        for (int b = 0; b < BatchSize; b++)
        {
            int count = NewTokens(b, tokens, counts);
            if (count > 0)
            {
                using DisposeScope scope = NewDisposeScope();
                output[b].narrow(1, 0, count).copy_(AttendChunk(
                    b, query[b].narrow(1, 0, count), keys[b].narrow(1, 0, count), values[b].narrow(1, 0, count), scale));
            }
        }

        return output;
    }

    // One sequence: query [num_heads, n, head_dim], keys and values [num_kv_heads, n, head_dim].
    private Tensor AttendChunk(int sequence, Tensor query, Tensor keys, Tensor values, double? scale)
    {
        long count = query.shape[1];
        Tensor rows = query.to(ScalarType.Float32).Times(scale ?? 1 / Math.Sqrt(HeadDim)).reshape(NumKvHeads, -1, HeadDim);
        long group = rows.shape[1] / count;
        OnlineSoftmax softmax = new(rows);
        int length = _state.Lengths[sequence], compressed = _state.Compressed[sequence];
        int sinks = _sinks is null ? 0 : _sinks.Counts[sequence];
        softmax.Add(keys.to(ScalarType.Float32), values.to(ScalarType.Float32), Hidden(sinks + length, sinks + length, (int)count, (int)count, group));
        if (sinks > 0)
        {
            (Tensor k, Tensor v) = _sinks!.Of(sequence);
            softmax.Add(k, v, hidden: null);
        }

        for (int first = FirstVisible(length); first < length;)
        {
            bool packed = first < compressed;
            int end = Math.Min(packed ? compressed : length, first + SegmentTokens);
            using DisposeScope scope = NewDisposeScope();
            (Tensor k, Tensor v) = packed ? Expand(sequence, first, end - first) : Window(sequence, first, end - first);
            Tensor? hidden = Options.SlidingWindow is null ? null : Hidden(sinks + length, sinks + first, end - first, (int)count, group);
            softmax.Add(k.to(ScalarType.Float32), v.to(ScalarType.Float32), hidden);
            softmax.MoveToOuter();
            first = end;
        }

        return softmax.Result().reshape(query.shape);
    }

    // True where a query at position + i must not look at token first + j: [group · queries, tokens]. Rows run through the heads of a
    // group, then through the queries.
    private Tensor Hidden(int position, int first, int tokens, int queries, long group)
    {
        Tensor distance = Scalars.Range(position, queries, Device).unsqueeze(1) - Scalars.Range(first, tokens, Device);
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
    private (Tensor Keys, Tensor Values) Expand(int sequence, int first, int count)
    {
        return (Expanded(keys: true), Expanded(keys: false));

        Tensor Expanded(bool keys)
        {
            Tensor dense = empty([1, NumKvHeads, count, HeadDim], dtype: DType, device: Device);
            NativeContext context = TensorAccess.Context(Device);
            NativeBlocks blocks = Blocks(keys, sequence);
            NativeDense destination = TensorAccess.Dense(dense);
            NativeCall.Check(NativeMethods.Decompress(&context, 1, NumKvHeads, first, count, &blocks, &destination));
            return dense[0];
        }
    }

    // Dense tokens of a sequence from the ring.
    private (Tensor Keys, Tensor Values) Window(int sequence, int first, int count)
    {
        Tensor slots = Slots(first, count);
        return (_tailKeys[sequence].index_select(1, slots), _tailValues[sequence].index_select(1, slots));
    }

    // Where consecutive tokens lie in the ring.
    private Tensor Slots(int first, int count)
    {
        long[] slots = new long[count];
        for (int i = 0; i < slots.Length; i++)
        {
            slots[i] = (first + i) % _tailCapacity;
        }

        return tensor(slots, device: Device);
    }

    // Lengths that the sequences have at least, sinks included.
    private void ShortenTo(ReadOnlySpan<int> lengths)
    {
        int[] afterSinks = new int[BatchSize];
        for (int b = 0; b < BatchSize; b++)
        {
            afterSinks[b] = Math.Max(0, lengths[b] - Options.SinkTokens);
        }

        CheckWindow(afterSinks);
        Shorten(afterSinks);
        for (int b = 0; b < BatchSize; b++)
        {
            _sinks?.Shorten(b, lengths[b]);
        }
    }

    // All that can fail comes before the first change.
    private void Shorten(ReadOnlySpan<int> lengths)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        int[] compressed = new int[BatchSize];
        List<(int Sequence, Tensor Slots, Tensor Keys, Tensor Values)> returning = [];
        for (int b = 0; b < BatchSize; b++)
        {
            // What the sliding window released can't come back, and nothing sees it.
            int due = Math.Max(Due(lengths[b], lookahead: 0), _pages.Released(b) * Options.GroupSize);
            compressed[b] = lengths[b] == 0 ? 0 : Math.Min(due, _state.Compressed[b]);
            int count = Math.Min(lengths[b], _state.Compressed[b]) - compressed[b];
            if (count > 0)
            {
                (Tensor keys, Tensor values) = Expand(b, compressed[b], count);
                returning.Add((b, Slots(compressed[b], count), keys, values));
            }
        }

        foreach ((int sequence, Tensor slots, Tensor keys, Tensor values) in returning)
        {
            _tailKeys[sequence].index_copy_(1, slots, keys);
            _tailValues[sequence].index_copy_(1, slots, values);
        }

        for (int b = 0; b < BatchSize; b++)
        {
            ReturnPages(b, compressed[b]);
            if (lengths[b] == 0)
            {
                _pages.Restart(b);
            }

            _state.Set(b, lengths[b], compressed[b]);
        }

        _state.Upload();
    }
}
