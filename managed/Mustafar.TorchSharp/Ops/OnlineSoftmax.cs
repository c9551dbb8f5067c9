using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Attention of many queries to tokens that come in segments: softmax over all of them without having them all at once. (Milakov and
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
    /// <param name="hidden">Bool [queries, tokens], true where a query must not look; null if all look everywhere. Each query must
    /// see something in the first segment.</param>
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

        Tensor weights = (scores - highest).exp_();
        Tensor sum = weights.sum(-1, keepdim: true);
        Tensor added = matmul(weights, values);
        if (_maximum is null)
        {
            (_sum, _values) = (sum, added);
        }
        else
        {
            Tensor factor = (_maximum - highest).exp_();
            _sum = sum.addcmul_(_sum!, factor, Scalars.One);
            _values = added.addcmul_(_values!, factor, Scalars.One);
        }

        _maximum = highest;
    }

    /// <summary>Carries what has been added so far to the next outer dispose scope.</summary>
    internal void MoveToOuter()
    {
        _maximum?.MoveToOuterDisposeScope();
        _sum?.MoveToOuterDisposeScope();
        _values?.MoveToOuterDisposeScope();
    }

    /// <summary>The attention's output, Float32 [heads, queries, head_dim].</summary>
    internal Tensor Result() => _values! / _sum!;
}
