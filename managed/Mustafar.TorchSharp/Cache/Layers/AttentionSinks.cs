using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// The first tokens of each sequence, which stay dense and which every later query sees: attention sinks (Xiao et al., ICLR 2024,
/// arXiv 2309.17453).
/// </summary>
/// <remarks>
/// They are separate from the other tokens, whose attention is computed without them. Since a softmax can be combined from its parts, the
/// others then count as one more token, whose score is the logarithm of the sum of their exponentials and whose value is their attention.
/// </remarks>
internal sealed class AttentionSinks : IDisposable
{
    private readonly CacheShape _shape;

    // Float32 [slots, num_kv_heads, capacity, head_dim]: exact for every type, and nothing to convert in a step. Places past a sequence's
    // count are zero: their weight is 0, and 0 · NaN would be NaN.
    private readonly Tensor _keys;
    private readonly Tensor _values;

    internal AttentionSinks(CacheShape shape, int capacity, int slots)
    {
        (_shape, Capacity) = (shape, capacity);
        (_keys, _values) = shape.Allocate(slots, capacity, ScalarType.Float32);
    }

    /// <summary>Number of sinks of a sequence that is long enough.</summary>
    internal int Capacity { get; }

    /// <summary>Their keys, Float32 [slots, num_kv_heads, capacity, head_dim].</summary>
    internal Tensor Keys => _keys;

    /// <summary>Their values, in the same form.</summary>
    internal Tensor Values => _values;

    /// <summary>Bytes of a slot's sinks.</summary>
    internal static long SlotBytes(CacheShape shape, int capacity) => 2L * shape.NumKvHeads * capacity * shape.HeadDim * sizeof(float);

    /// <summary>The same sinks with room for that many slots.</summary>
    internal AttentionSinks Grown(int slots)
    {
        AttentionSinks grown = new(_shape, Capacity, slots);
        grown._keys.narrow(0, 0, _keys.size(0)).copy_(_keys);
        grown._values.narrow(0, 0, _values.size(0)).copy_(_values);
        return grown;
    }

    /// <summary>Copies a sequence's sinks.</summary>
    internal void Continue(int slot, AttentionSinks source, int parent)
    {
        _keys[slot].copy_(source._keys[parent]);
        _values[slot].copy_(source._values[parent]);
    }

    /// <summary>Stores those of a step's tokens that become sinks.</summary>
    /// <param name="plan">The step.</param>
    /// <param name="keys">[batch, num_kv_heads, n, head_dim].</param>
    /// <param name="values">[batch, num_kv_heads, n, head_dim].</param>
    /// <returns>The other tokens in the same form, null if there are none.</returns>
    internal (Tensor Keys, Tensor Values)? Take(StepPlan plan, Tensor keys, Tensor values)
    {
        using IDisposable noGrad = no_grad();
        int[] taken = plan.SinksTaken.ToArray();
        int[] left = new int[taken.Length];
        for (int b = 0; b < taken.Length; b++)
        {
            left[b] = plan.Counts[b] - taken[b];
            if (taken[b] > 0)
            {
                int slot = plan.Slots[b], first = plan.SinksBefore[b];
                _keys[slot].narrow(1, first, taken[b]).copy_(keys[b].narrow(1, 0, taken[b]));
                _values[slot].narrow(1, first, taken[b]).copy_(values[b].narrow(1, 0, taken[b]));
            }
        }

        int most = left.Max();
        return most == 0 ? null : (Rest(keys), Rest(values));

        Tensor Rest(Tensor source)
        {
            if (taken.AsSpan().IndexOfAnyExcept(taken[0]) < 0)
            {
                return source.narrow(2, taken[0], most);
            }

            Tensor rest = zeros([source.size(0), source.size(1), most, source.size(3)], dtype: source.dtype, device: source.device);
            for (int b = 0; b < left.Length; b++)
            {
                if (left[b] > 0)
                {
                    rest[b].narrow(1, 0, left[b]).copy_(source[b].narrow(1, taken[b], left[b]));
                }
            }

            return rest;
        }
    }

    /// <summary>A sequence's sinks, Float32 [num_kv_heads, count, head_dim].</summary>
    internal (Tensor Keys, Tensor Values) Of(int slot, int count) => (_keys[slot].narrow(1, 0, count), _values[slot].narrow(1, 0, count));

    /// <summary>Attention to the sinks and to all other tokens.</summary>
    /// <param name="plan">The step.</param>
    /// <param name="query">Queries [batch, num_heads, n, head_dim].</param>
    /// <param name="others">Their attention to the other tokens, of the same shape.</param>
    /// <param name="logSumExp">Logarithm of the sum of the exponentials of its scores, Float32 [batch, num_heads, n].</param>
    /// <param name="scale">Factor of the scores.</param>
    /// <returns>A tensor like the query; zero where a query sees nothing.</returns>
    internal Tensor Merge(StepPlan plan, Tensor query, Tensor others, Tensor logSumExp, double scale)
    {
        using IDisposable noGrad = no_grad();
        long[] shape = query.Sizes();
        (long batch, long heads, long queries, long headDim) = (shape[0], shape[1], shape[2], shape[3]);
        (Tensor keys, Tensor values) = (Rows(_keys, plan.Slots), Rows(_values, plan.Slots));
        Tensor rows = query.to(ScalarType.Float32).Times(scale).reshape(batch, _shape.NumKvHeads, -1, headDim);
        Tensor scores = matmul(rows, keys.transpose(2, 3)).reshape(batch, heads, queries, Capacity);
        Tensor? visible = Visible(plan, checked((int)queries));
        if (visible is not null)
        {
            scores = scores.masked_fill_(visible.logical_not(), Scalars.NegativeInfinity);
        }

        Tensor weights = cat([scores, logSumExp.unsqueeze(-1)], -1).softmax(-1);
        Tensor sinkWeights = weights.narrow(3, 0, Capacity).reshape(batch, _shape.NumKvHeads, -1, Capacity);
        Tensor? hidden = visible?.logical_not().repeat(1, 1, heads / _shape.NumKvHeads, 1);
        Tensor sinks = OnlineSoftmax.WeightedSum(sinkWeights, values, hidden).reshape(shape);
        // Scores that are all -infinity made the others' attention NaN; with sinks present they have no weight.
        Tensor added = others.to(ScalarType.Float32).masked_fill(logSumExp.isneginf().unsqueeze(-1), Scalars.Zero);
        Tensor output = sinks.addcmul_(added, weights.narrow(3, Capacity, 1), Scalars.One);
        if (visible is not null)
        {
            // A query that sees any token sees the first one.
            output = output.masked_fill_(visible.narrow(3, 0, 1).logical_not(), Scalars.Zero);
        }

        return output.to(query.dtype);
    }

    /// <summary>Restores the sinks in a range to their state before they were stored.</summary>
    internal void Erase(int slot, int first, int end)
    {
        if (first < end)
        {
            _keys[slot].narrow(1, first, end - first).zero_();
            _values[slot].narrow(1, first, end - first).zero_();
        }
    }

    public void Dispose()
    {
        _keys.Dispose();
        _values.Dispose();
    }

    private static Tensor Rows(Tensor tensor, ReadOnlySpan<int> slots)
    {
        long[] rows = new long[slots.Length];
        bool ordered = true;
        for (int b = 0; b < rows.Length; b++)
        {
            rows[b] = slots[b];
            ordered &= slots[b] == b;
        }

        return ordered ? tensor.narrow(0, 0, rows.Length) : tensor.index_select(0, torch.tensor(rows, device: tensor.device));
    }

    // True if a query sees a sink, [batch, 1, queries, capacity]; null if all see all.
    private Tensor? Visible(StepPlan plan, int queries)
    {
        bool all = plan.IsUniform;
        for (int b = 0; b < plan.Batch && all; b++)
        {
            all = plan.FirstQuery(b) >= Capacity - 1;
        }

        if (all)
        {
            return null;
        }

        bool[] visible = new bool[plan.Batch * queries * Capacity];
        for (int b = 0; b < plan.Batch; b++)
        {
            for (int i = 0; i < plan.Counts[b]; i++)
            {
                int seen = Math.Clamp(plan.FirstQuery(b) + i + 1, 0, Capacity);
                visible.AsSpan(((b * queries) + i) * Capacity, seen).Fill(true);
            }
        }

        return tensor(visible, device: _keys.device).reshape(plan.Batch, 1, queries, Capacity);
    }
}
