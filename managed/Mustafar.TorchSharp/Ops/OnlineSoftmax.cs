using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Attention of many queries to tokens that arrive in segments: a softmax over all of them that never holds them all. (Milakov and
/// Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135.)
/// </summary>
/// <param name="query">Float32 [heads, queries, head_dim], already scaled.</param>
internal sealed class OnlineSoftmax(Tensor query)
{
    private Tensor? _maximum;
    private Tensor? _sum;
    private Tensor? _values;

    /// <summary>Adds a segment. The results live in the current dispose scope.</summary>
    /// <param name="keys">Float32 [heads, tokens, head_dim].</param>
    /// <param name="values">Float32 [heads, tokens, head_dim].</param>
    /// <param name="hidden">Bool [queries, tokens], true for tokens that a query does not see; null if all see everything.</param>
    internal void Add(Tensor keys, Tensor values, Tensor? hidden)
    {
        Tensor scores = matmul(query, keys.transpose(1, 2));
        if (hidden is not null)
        {
            scores = scores.masked_fill_(hidden, Scalars.NegativeInfinity);
        }

        Tensor highest = scores.amax([-1], keepdim: true);
        if (_maximum is not null)
        {
            highest = maximum(highest, _maximum);
        }

        // Scores that are all -infinity so far have no weight yet; if all of them stay so, the result is 0 / 0.
        Tensor reference = highest.masked_fill(highest.isneginf(), Scalars.Zero);
        Tensor weights = (scores - reference).exp_();
        Tensor sum = weights.sum(-1, keepdim: true);
        Tensor added = WeightedSum(weights, values, hidden);
        if (_maximum is null)
        {
            (_sum, _values) = (sum, added);
        }
        else
        {
            Tensor factor = (_maximum - reference).exp_();
            _sum = sum.addcmul_(_sum!, factor, Scalars.One);
            _values = added.addcmul_(_values!, factor, Scalars.One);
        }

        _maximum = highest;
    }

    /// <summary>Moves the state so far to the next outer dispose scope.</summary>
    internal void MoveToOuter()
    {
        _maximum?.MoveToOuterDisposeScope();
        _sum?.MoveToOuterDisposeScope();
        _values?.MoveToOuterDisposeScope();
    }

    /// <summary>The attention's output, Float32 [heads, queries, head_dim]; NaN for a query that sees nothing.</summary>
    internal Tensor Result() => _values! / _sum!;

    /// <summary>Weights times values, without hidden tokens: a weight of zero would turn a non-finite value into NaN.</summary>
    /// <param name="weights">[…, queries, tokens], zero where hidden.</param>
    /// <param name="values">[…, tokens, head_dim].</param>
    /// <param name="hidden">Bool, broadcast to the weights; null if nothing is hidden.</param>
    internal static Tensor WeightedSum(Tensor weights, Tensor values, Tensor? hidden)
    {
        if (hidden is null || DenseAttention.IsFinite(values))
        {
            return matmul(weights, values);
        }

        // The finite values, then which of the others are seen: with a positive weight, or with a zero weight, which turns infinity into
        // NaN.
        Tensor sum = matmul(weights, values.masked_fill(values.isfinite().logical_not(), Scalars.Zero));
        Tensor seen = weights.gt(Scalars.Zero).to(weights.dtype);
        Tensor zero = weights.eq(Scalars.Zero).logical_and(hidden.logical_not()).to(weights.dtype);
        Tensor nan = Any(seen + zero, values.isnan()).logical_or(Any(zero, values.isinf()));
        Tensor positive = Any(seen, values.isposinf()), negative = Any(seen, values.isneginf());
        return sum
            .masked_fill(positive, Scalars.PositiveInfinity)
            .masked_fill(negative, Scalars.NegativeInfinity)
            .masked_fill(nan.logical_or(positive.logical_and(negative)), Scalars.NaN)
            .masked_fill(sum.isnan(), Scalars.NaN);

        static Tensor Any(Tensor weights, Tensor marked) => matmul(weights, marked.to(weights.dtype)).gt(Scalars.Zero);
    }
}
