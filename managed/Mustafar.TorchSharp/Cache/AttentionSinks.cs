using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// The first tokens of each sequence, which stay dense and which every later query sees: attention sinks (Xiao et al., ICLR 2024,
/// arXiv 2309.17453).
/// </summary>
/// <remarks>
/// They are apart from the other tokens, whose attention is computed without them. Since softmax is known from its parts, those count
/// as one more token then, whose score is the logarithm of the sum of their exponentials and whose value is their attention.
/// </remarks>
internal sealed class AttentionSinks : IDisposable
{
    // Float32 [batch, num_kv_heads, capacity, head_dim]: exact for every type, and nothing to convert in a step. Slots past a sequence's
    // count are zero: their weight is 0, and 0 · NaN would be NaN.
    private readonly Tensor _keys;
    private readonly Tensor _values;
    private readonly int[] _counts;
    private readonly int[] _countsBefore;

    internal AttentionSinks(int capacity, int batchSize, int numKvHeads, int headDim, torch.Device device)
    {
        Capacity = capacity;
        _counts = new int[batchSize];
        _countsBefore = new int[batchSize];
        // A tensor made in inference mode could not be written to outside of it.
        using IDisposable mode = inference_mode(false);
        _keys = zeros([batchSize, numKvHeads, capacity, headDim], dtype: ScalarType.Float32, device: device).DetachFromDisposeScope();
        _values = zeros_like(_keys).DetachFromDisposeScope();
        Bytes = 2 * _keys.numel() * sizeof(float);
    }

    /// <summary>Sinks of a sequence that is long enough.</summary>
    internal int Capacity { get; }

    /// <summary>Sinks that each sequence has.</summary>
    internal ReadOnlySpan<int> Counts => _counts;

    /// <summary>Their keys, Float32 [batch, num_kv_heads, capacity, head_dim].</summary>
    internal Tensor Keys => _keys;

    /// <summary>Their values, in the same form.</summary>
    internal Tensor Values => _values;

    internal long Bytes { get; }

    /// <summary>Whether none of so many new tokens becomes a sink.</summary>
    internal bool AreFullFor(ReadOnlySpan<int> counts)
    {
        for (int b = 0; b < _counts.Length; b++)
        {
            if (_counts[b] < Capacity && (counts.IsEmpty || counts[b] > 0))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>Takes those of the new tokens that become sinks.</summary>
    /// <param name="keys">[batch, num_kv_heads, n, head_dim].</param>
    /// <param name="values">[batch, num_kv_heads, n, head_dim].</param>
    /// <param name="counts">How many of the n tokens belong to each sequence; all n if empty.</param>
    /// <returns>The other tokens in the same form, null if there are none.</returns>
    internal (Tensor Keys, Tensor Values, int[] Counts)? Take(Tensor keys, Tensor values, ReadOnlySpan<int> counts)
    {
        using IDisposable noGrad = no_grad();
        int tokens = checked((int)keys.shape[2]);
        int[] taken = new int[_counts.Length];
        int[] left = new int[_counts.Length];
        for (int b = 0; b < taken.Length; b++)
        {
            int count = counts.IsEmpty ? tokens : counts[b];
            int first = _counts[b];
            taken[b] = Math.Min(Capacity - first, count);
            left[b] = count - taken[b];
            _counts[b] += taken[b];
            if (taken[b] > 0)
            {
                _keys[b].narrow(1, first, taken[b]).copy_(keys[b].narrow(1, 0, taken[b]));
                _values[b].narrow(1, first, taken[b]).copy_(values[b].narrow(1, 0, taken[b]));
            }
        }

        int most = left.Max();
        return most == 0 ? null : (Rest(keys), Rest(values), left);

        Tensor Rest(Tensor source)
        {
            if (taken.AsSpan().IndexOfAnyExcept(taken[0]) < 0)
            {
                return source.narrow(2, taken[0], most);
            }

            Tensor rest = zeros([source.shape[0], source.shape[1], most, source.shape[3]], dtype: source.dtype, device: source.device);
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
    internal (Tensor Keys, Tensor Values) Of(int sequence) =>
        (_keys[sequence].narrow(1, 0, _counts[sequence]), _values[sequence].narrow(1, 0, _counts[sequence]));

    /// <summary>Attention to the sinks and to all other tokens.</summary>
    /// <param name="query">Queries [batch, num_heads, n, head_dim].</param>
    /// <param name="others">Their attention to the other tokens, of the same shape.</param>
    /// <param name="logSumExp">Logarithm of the sum of the exponentials of its scores, Float32 [batch, num_heads, n].</param>
    /// <param name="scale">Factor of the scores.</param>
    /// <param name="positions">Where each sequence's first query stands; negative if before its first token.</param>
    /// <param name="counts">How many of the n queries belong to each sequence; all n if empty.</param>
    /// <returns>A tensor like the query; zero where a query sees nothing.</returns>
    internal Tensor Merge(
        Tensor query, Tensor others, Tensor logSumExp, double scale, ReadOnlySpan<int> positions, ReadOnlySpan<int> counts)
    {
        using IDisposable noGrad = no_grad();
        long[] shape = query.shape;
        (long batch, long heads, long queries, long headDim) = (shape[0], shape[1], shape[2], shape[3]);
        Tensor rows = query.to(ScalarType.Float32).Times(scale).reshape(batch, _keys.shape[1], -1, headDim);
        Tensor scores = matmul(rows, _keys.transpose(2, 3)).reshape(batch, heads, queries, Capacity);
        Tensor? visible = Visible(positions, counts, checked((int)queries));
        if (visible is not null)
        {
            scores = scores.masked_fill_(visible.logical_not(), Scalars.NegativeInfinity);
        }

        Tensor weights = cat([scores, logSumExp.unsqueeze(-1)], -1).softmax(-1);
        Tensor sinkWeights = weights.narrow(3, 0, Capacity).reshape(batch, _keys.shape[1], -1, Capacity);
        Tensor? hidden = visible?.logical_not().repeat(1, 1, heads / _keys.shape[1], 1);
        Tensor sinks = OnlineSoftmax.WeightedSum(sinkWeights, _values, hidden).reshape(shape);
        // Scores that are all -infinity made NaN of the others' attention; beside the sinks they weigh nothing.
        Tensor added = others.to(ScalarType.Float32).masked_fill(logSumExp.isneginf().unsqueeze(-1), Scalars.Zero);
        Tensor output = sinks.addcmul_(added, weights.narrow(3, Capacity, 1), Scalars.One);
        if (visible is not null)
        {
            // A query that sees a token sees the first.
            output = output.masked_fill_(visible.narrow(3, 0, 1).logical_not(), Scalars.Zero);
        }

        return output.to(query.dtype);
    }

    /// <summary>Leaves a sequence so many sinks at most.</summary>
    internal void Shorten(int sequence, int count)
    {
        int more = _counts[sequence] - count;
        if (more > 0)
        {
            _counts[sequence] = count;
            _keys[sequence].narrow(1, count, more).zero_();
            _values[sequence].narrow(1, count, more).zero_();
        }
    }

    /// <summary>Takes over the sinks of another cache's sequences.</summary>
    internal void Continue(AttentionSinks source, ReadOnlySpan<int> parents)
    {
        for (int b = 0; b < parents.Length; b++)
        {
            _keys[b].copy_(source._keys[parents[b]]);
            _values[b].copy_(source._values[parents[b]]);
            _counts[b] = source._counts[parents[b]];
        }
    }

    /// <summary>Counts sinks that were put in place.</summary>
    internal void SetCounts(ReadOnlySpan<int> counts) => counts.CopyTo(_counts);

    /// <summary>Remembers how many there are.</summary>
    internal void Mark() => _counts.CopyTo(_countsBefore, 0);

    /// <summary>Undoes what was taken since <see cref="Mark"/>.</summary>
    internal void GoBack()
    {
        for (int b = 0; b < _counts.Length; b++)
        {
            Shorten(b, _countsBefore[b]);
        }
    }

    public void Dispose()
    {
        _keys.Dispose();
        _values.Dispose();
    }

    // True where a query sees a sink, [batch, 1, queries, capacity]; null if all see all.
    private Tensor? Visible(ReadOnlySpan<int> positions, ReadOnlySpan<int> counts, int queries)
    {
        if ((counts.IsEmpty || counts.IndexOfAnyExcept(queries) < 0) && positions.IndexOfAnyInRange(int.MinValue, Capacity - 2) < 0)
        {
            return null;
        }

        bool[] visible = new bool[positions.Length * queries * Capacity];
        for (int b = 0; b < positions.Length; b++)
        {
            int real = counts.IsEmpty ? queries : counts[b];
            for (int i = 0; i < real; i++)
            {
                int seen = Math.Clamp(positions[b] + i + 1, 0, Capacity);
                visible.AsSpan(((b * queries) + i) * Capacity, seen).Fill(true);
            }
        }

        return tensor(visible, device: _keys.device).reshape(positions.Length, 1, queries, Capacity);
    }
}
