using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// A step of one layer: appending tokens, and attending to what is stored.
internal sealed unsafe partial class LayerStorage
{
    /// <summary>Up to so many queries of a sequence attend by the decode kernel on the CPU; for more, torch's attention is faster.</summary>
    internal const int MostDecodeQueriesCpu = 8;

    // Later on a GPU, whose host is slow to launch attention for each sequence.
    private const int MostDecodeQueriesCuda = 32;

    private (Tensor Slots, Tensor Keys, Tensor Values)? _overwritten;

    /// <summary>Adds a step's tokens and attends from them. If it fails, <see cref="Rollback"/> undoes what it did.</summary>
    /// <remarks>How a row attends does not depend on the other rows.</remarks>
    internal Tensor Forward(StepPlan plan, Tensor query, Tensor keys, Tensor values, double? scale, HeadRotation? rotation, bool isLast)
    {
        // Where something else reads the heads, or more than one token of a sequence, the rotation comes first.
        if (plan.Tokens > 1 || plan.TakesSinks || SelectsByOperations(plan))
        {
            rotation?.Apply();
            rotation = null;
        }

        Tensor output;
        StepTokens tokens = new(query, keys, values, scale ?? 1 / Math.Sqrt(_shape.HeadDim), rotation);
        Gather(plan, query, keys, values);
        if (plan.Tokens == 1)
        {
            Append(plan, tokens, isLast);
            output = AttendStored(plan, query, scale);
        }
        else
        {
            if (plan.CompressesFirst)
            {
                AppendTokens(plan, tokens, isEarly: true);
            }

            output = AttendNew(plan, query, keys, values, scale);
            Append(plan, tokens, isLast);
        }

        return output;
    }

    // Adds a step's tokens: the sinks take the ones that they lack, and the rest are stored normally. isLast: whether nothing that can fail
    // follows, so that nothing has to be undone.
    private void Append(StepPlan plan, StepTokens tokens, bool isLast)
    {
        if (!isLast && plan.Overwritten.Count > 0)
        {
            KeepOverwritten(plan);
        }

        if (!plan.TakesSinks)
        {
            AppendTokens(plan, tokens, isEarly: false);
        }
        else if (Sinks!.Take(plan, tokens.Keys, tokens.Values) is (Tensor otherKeys, Tensor otherValues))
        {
            AppendTokens(plan, tokens with { Keys = otherKeys, Values = otherValues }, isEarly: false);
        }
    }

    /// <summary>Adds a step's tokens, which don't attend.</summary>
    internal void AppendAlone(StepPlan plan, Tensor keys, Tensor values)
    {
        Gather(plan, query: null, keys, values);
        Append(plan, new StepTokens(null, keys, values, Scale: 1, Rotation: null), isLast: true);
    }

    /// <summary>Attends to what is stored after the step, from its last tokens.</summary>
    internal Tensor AttendStored(StepPlan plan, Tensor query, double? scale) => AttendTokens(plan, query, null, null, scale);

    /// <summary>Commits a step.</summary>
    internal void Commit()
    {
        _overwritten?.Slots.Dispose();
        _overwritten?.Keys.Dispose();
        _overwritten?.Values.Dispose();
        _overwritten = null;
        KeyStatistics?.Commit();
        ValueStatistics?.Commit();
        RecentQueries?.Commit();
    }

    /// <summary>Restores the ring and the sinks to their state before a step, however much of the step was done.</summary>
    /// <remarks>
    /// Tokens that the step compressed are still in the ring, which has room for more than what may wait in it, unless many new ones
    /// overwrote them.
    /// </remarks>
    internal void Rollback(StepPlan plan)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        KeyStatistics?.Rollback();
        ValueStatistics?.Rollback();
        RecentQueries?.Rollback();
        if (_overwritten is (Tensor slots, Tensor keys, Tensor values))
        {
            _tailKeys.index_copy_(0, slots, keys);
            _tailValues.index_copy_(0, slots, values);
            Commit();
        }

        for (int b = 0; b < plan.Batch && plan.TakesSinks; b++)
        {
            Sinks!.Erase(plan.Slots[b], plan.SinksBefore[b], plan.SinksBefore[b] + plan.SinksTaken[b]);
        }
    }

    private void KeepOverwritten(StepPlan plan)
    {
        using IDisposable mode = inference_mode(false);
        Tensor slots = tensor(plan.Overwritten.Select(slot => (long)slot).ToArray(), device: _shape.Device).DetachFromDisposeScope();
        _overwritten = (
            slots,
            _tailKeys.index_select(0, slots).DetachFromDisposeScope(),
            _tailValues.index_select(0, slots).DetachFromDisposeScope());
    }

    // Compresses what falls due, and puts new tokens in the ring. Early: before these attend, it only compresses.
    private void AppendTokens(StepPlan plan, StepTokens tokens, bool isEarly)
    {
        Tensor? keyMasks = Masks(plan, ofKeys: true, tokens, isEarly);
        Tensor? valueMasks = Masks(plan, ofKeys: false, tokens, isEarly);
        List<(int Row, Tensor Tokens)> rewrittenKeys = Rewrite(plan, ofKeys: true, tokens, isEarly);
        List<(int Row, Tensor Tokens)> rewrittenValues = Rewrite(plan, ofKeys: false, tokens, isEarly);
        (Tensor? keys, Tensor? values) = isEarly ? (null, null) : ((Tensor?)tokens.Keys, (Tensor?)tokens.Values);
        NativeAppend append = new()
        {
            Batch = plan.Batch,
            NumSlots = _table.Slots,
            NumKvHeads = _shape.NumKvHeads,
            NumTokens = keys is null ? 0 : checked((int)keys.size(2)),
            Lookahead = isEarly ? 1 : 0,
            GroupSize = Options.GroupSize,
            LocalWindow = Options.LocalWindow,
            TailCapacity = _tailCapacity,
            MaxTokens = plan.MaxTokens,
            Sequences = plan.SlotsPointer,
            Counts = keys is null ? null : plan.NewCountsPointer,
            Lengths = plan.LengthsPointer,
            Compressed = isEarly ? plan.CompressedPointer : plan.ReadyPointer,
            NewKeys = keys is null ? default : TensorAccess.Dense(keys),
            NewValues = values is null ? default : TensorAccess.Dense(values),
            Keys = Blocks(keys: true),
            Values = Blocks(keys: false),
            KeyFactors = KeyScalesFrom(0),
            TailKeys = _denseTailKeys,
            TailValues = _denseTailValues,
            KeyImportance = TensorAccess.Floats(KeyStatistics?.Importance),
            ValueImportance = TensorAccess.Floats(ValueStatistics?.Importance),
            KeyBitmap = keyMasks is null ? null : (uint*)TensorAccess.Pointer(keyMasks),
            ValueBitmap = valueMasks is null ? null : (uint*)TensorAccess.Pointer(valueMasks),
            BitmapTokens = checked((int)((keyMasks ?? valueMasks)?.size(2) ?? 0)),
        };
        HeadRotation.Append(tokens.Rotation, _shape.Device, &append);
        GC.KeepAlive(keys);
        GC.KeepAlive(values);
        GC.KeepAlive(keyMasks);
        GC.KeepAlive(valueMasks);
        Store(plan, ofKeys: true, rewrittenKeys, isEarly);
        Store(plan, ofKeys: false, rewrittenValues, isEarly);
    }

    // Several new tokens, not appended yet: few of them by the decode kernel; many, and those of sequences without all of their sinks, one
    // sequence after another.
    private Tensor AttendNew(StepPlan plan, Tensor query, Tensor keys, Tensor values, double? scale)
    {
        bool few = plan.Tokens <= (_shape.Device.type == DeviceType.CUDA ? MostDecodeQueriesCuda : MostDecodeQueriesCpu);
        if (!few && plan.IsUniform && IsEmpty(plan))
        {
            return DenseAttention.Causal(query, keys, values, scale, Options.SlidingWindow, Options.SinkTokens);
        }

        if (plan.Batch == 1 && plan.IsUniform && !(few && plan.HasKernelQueries))
        {
            return AttendRow(plan, 0, query, keys, values, scale);
        }

        Tensor output = few && plan.HasKernelQueries
            ? AttendTokens(plan, query, keys, values, scale)
            : zeros(query.shape, dtype: _shape.DType, device: _shape.Device);
        for (int b = 0; b < plan.Batch; b++)
        {
            if (plan.Counts[b] > 0 && !(few && plan.KernelQueries(b) > 0))
            {
                using DisposeScope scope = NewDisposeScope();
                Own(output).copy_(AttendRow(plan, b, Own(query), Own(keys), Own(values), scale));
            }

            // What stands in the padding must not reach a token, not even as 0 · NaN.
            Tensor Own(Tensor tensor) => tensor.narrow(0, b, 1).narrow(2, 0, plan.Counts[b]);
        }

        return output;
    }

    private static bool IsEmpty(StepPlan plan)
    {
        for (int b = 0; b < plan.Batch; b++)
        {
            if (plan.Length(b) + plan.SinksBefore[b] > 0)
            {
                return false;
            }
        }

        return true;
    }

    // keys and values: the queries' own tokens if they are not appended yet.
    private Tensor AttendTokens(StepPlan plan, Tensor query, Tensor? keys, Tensor? values, double? scale)
    {
        query = TensorAccess.WithContiguousRows(query);
        int queries = checked((int)query.size(2));
        Tensor output = empty([query.size(0), query.size(1), queries, _shape.HeadDim], dtype: _shape.DType, device: _shape.Device);
        Tensor? logSumExp = Sinks is null
            ? null : empty([query.size(0), query.size(1), queries], dtype: ScalarType.Float32, device: _shape.Device);
        NativeContext context = TensorAccess.Context(_shape.Device);
        NativeAttention attention = new()
        {
            Batch = plan.Batch,
            NumSlots = _table.Slots,
            NumHeads = checked((int)query.size(1)),
            NumKvHeads = _shape.NumKvHeads,
            NumQueries = queries,
            NumFresh = keys is null ? 0 : queries,
            TailCapacity = _tailCapacity,
            MaxTokens = plan.MaxTokens,
            SlidingWindow = Options.SlidingWindow ?? 0,
            Scale = (float)(scale ?? 1 / Math.Sqrt(_shape.HeadDim)),
            Sequences = plan.SlotsPointer,
            Lengths = plan.LengthsAfterPointer,
            Compressed = plan.AttendedPointer,
            QueryCounts = plan.QueryCountsPointer,
            Query = TensorAccess.Dense(query),
            Output = TensorAccess.Dense(output),
            Keys = Blocks(keys: true),
            Values = Blocks(keys: false),
            KeyFactors = KeyScalesFrom(0),
            TailKeys = _denseTailKeys,
            TailValues = _denseTailValues,
            FreshKeys = keys is null ? default : TensorAccess.Dense(keys),
            FreshValues = values is null ? default : TensorAccess.Dense(values),
            LogSumExp = logSumExp is null ? null : (float*)TensorAccess.Pointer(logSumExp),
        };
        _workspace.Provide(context, ref attention);
        int status = NativeMethods.AttentionForward(&context, &attention);
        GC.KeepAlive(query);
        GC.KeepAlive(keys);
        GC.KeepAlive(values);
        NativeCall.Check(status);
        return Sinks is null ? output : Sinks.Merge(plan, query, output, logSumExp!, attention.Scale);
    }

    // What a step brings. Query: [batch, num_heads, n, head_dim], null where tokens come alone; keys and values: [batch, num_kv_heads, n, head_dim].
    // Rotation: what is still to be done to the queries and keys; null if nothing is.
    private readonly record struct StepTokens(Tensor? Query, Tensor Keys, Tensor Values, double Scale, HeadRotation? Rotation);
}
