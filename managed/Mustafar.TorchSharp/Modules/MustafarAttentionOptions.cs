namespace Mustafar;

/// <summary>Sizes of an attention layer.</summary>
/// <remarks>The object is immutable, so any thread may use it.</remarks>
public sealed record MustafarAttentionOptions
{
    /// <summary>Elements of a token's hidden state.</summary>
    public required int HiddenSize { get; init; }

    /// <summary>Number of query heads.</summary>
    public required int NumHeads { get; init; }

    /// <summary>Number of KV heads, a divisor of <see cref="NumHeads"/>: fewer than query heads is grouped-query attention.</summary>
    public required int NumKvHeads { get; init; }

    /// <summary>Elements of one head; hidden_size / num_heads in many models, but not in all.</summary>
    public required int HeadDim { get; init; }

    /// <summary>Whether q_proj, k_proj and v_proj have a bias.</summary>
    public bool QkvBias { get; init; }

    /// <summary>Whether o_proj has a bias.</summary>
    public bool OutputBias { get; init; }

    /// <summary>
    /// Added to the mean square when each head's query and key are normalised (<see cref="RmsNorm"/>, children <c>q_norm</c> and
    /// <c>k_norm</c>) before their positions are encoded, as in Qwen 3; null if they are not normalised.
    /// </summary>
    public double? QueryKeyNormEps { get; init; }

    /// <summary>Factor of the scores before softmax; 1/√head_dim if null.</summary>
    public double? Scale { get; init; }

    /// <summary>What the layer's caches are made with.</summary>
    /// <exception cref="ArgumentOutOfRangeException"><see cref="NumKvHeads"/> or <see cref="HeadDim"/> is not positive.</exception>
    public KeyValueShape KeyValueShape => new() { NumKvHeads = NumKvHeads, HeadDim = HeadDim };

    /// <summary>Checks that the sizes fit together.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A size is not positive.</exception>
    /// <exception cref="ArgumentException">The query heads are not a multiple of the KV heads.</exception>
    internal void Validate()
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(HiddenSize);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(NumHeads);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(NumKvHeads);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(HeadDim);
        if (NumHeads % NumKvHeads != 0)
        {
            throw new ArgumentException(
                $"Expected a multiple of {NumKvHeads} query heads, the number of KV heads, but got {NumHeads}.", nameof(NumHeads));
        }
    }
}
