namespace Mustafar;

/// <summary>The sizes of a token's key and of its value in one layer: [num_kv_heads, head_dim].</summary>
/// <remarks>
/// The number of query heads is not part of it: a cache takes any multiple of <see cref="NumKvHeads"/>. A shape is immutable, and so safe
/// to use from any thread.
/// </remarks>
/// <example>
/// <code>
/// KeyValueShape shape = new() { NumKvHeads = 8, HeadDim = 128 };
/// using MustafarCache pruned = new(batchSize: 1, shape, ScalarType.BFloat16);
/// using DenseCache dense = new(batchSize: 1, shape, ScalarType.BFloat16);
/// </code>
/// </example>
public sealed record KeyValueShape
{
    private readonly int _numKvHeads;
    private readonly int _headDim;

    /// <summary>Number of KV heads; a divisor of the number of query heads.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public required int NumKvHeads
    {
        get => _numKvHeads;
        init => _numKvHeads = value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(NumKvHeads), value, "Expected a positive number of key/value heads.");
    }

    /// <summary>Number of elements of one head's key, and of its value.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public required int HeadDim
    {
        get => _headDim;
        init => _headDim = value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(HeadDim), value, "Expected a positive number of elements of a head.");
    }
}
