namespace Mustafar;

/// <summary>Options whose bytes and quality were measured.</summary>
/// <remarks>
/// Bytes are those of compressed tokens with head_dim 128 relative to Float16, scales and bitmaps included. Quality is the perplexity
/// of the shipped checkpoint (README, <em>Quality</em>; 3.568 dense), with outliers after its key channels were given those of large models
/// (four pairs of channels of each head times 20, those of queries divided by 20). Change any of them with <c>with</c>.
/// </remarks>
public static class MustafarPresets
{
    /// <summary>Everything is kept, in 8 bits: 50.8 % of the bytes, perplexity 3.568, with outliers 3.571.</summary>
    public static MustafarOptions EightBits { get; } = new() { KeySparsity = 0, ValueSparsity = 0, KeyBits = 8, ValueBits = 8 };

    /// <summary>Everything is kept, in 4 bits, keys with channel scales: 25.8 % of the bytes, perplexity 3.593, with outliers 3.593.</summary>
    public static MustafarOptions FourBits { get; } = new() { KeySparsity = 0, ValueSparsity = 0, KeyBits = 4, ValueBits = 4 };

    /// <summary>The larger half of the channels is kept, in 4 bits, keys with channel scales: 19.5 % of the bytes, perplexity 3.629, with
    /// outliers 3.634.</summary>
    public static MustafarOptions HalfInFourBits { get; } = new() { KeySparsity = 0.5, ValueSparsity = 0.5, KeyBits = 4, ValueBits = 4 };

    /// <summary>2 of every 4 are kept (<see cref="MustafarOptions.BalancedKeys"/>), in 4 bits, keys with channel scales: 19.5 % of the
    /// bytes, perplexity 3.700, with outliers 3.752. The pattern of sparse tensor cores.</summary>
    public static MustafarOptions TwoOfFourInFourBits { get; } = HalfInFourBits with { BalancedKeys = true, BalancedValues = true };

    /// <summary>The 40 of 128 channels of largest magnitude are kept as they are, what options are without a choice: 37.5 % of the bytes,
    /// perplexity 3.782.</summary>
    public static MustafarOptions Default { get; } = new();
}
