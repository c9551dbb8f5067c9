namespace Mustafar;

/// <summary>Options with measured size and quality.</summary>
/// <remarks>
/// Bytes are those of compressed tokens with head_dim 128 relative to Float16, including scales and bitmaps. Quality is the perplexity
/// of the shipped checkpoint (README, <em>Quality</em>; 3.568 dense). <em>With outliers</em> means that its key channels were made like
/// those of large models (four pairs of channels of each head times 20, those of queries divided by 20). Adjust a preset with <c>with</c>.
/// </remarks>
public static class MustafarPresets
{
    /// <summary>All channels in 8 bits: 50.8 % of the bytes, perplexity 3.568, with outliers 3.571.</summary>
    public static MustafarOptions EightBits { get; } = new() { KeySparsity = 0, ValueSparsity = 0, KeyBits = 8, ValueBits = 8 };

    /// <summary>All channels in 4 bits, keys with channel scales: 25.8 % of the bytes, perplexity 3.593, with outliers 3.593.</summary>
    public static MustafarOptions FourBits { get; } = new() { KeySparsity = 0, ValueSparsity = 0, KeyBits = 4, ValueBits = 4 };

    /// <summary>The larger half of the channels in 4 bits, keys with channel scales: 19.5 % of the bytes, perplexity 3.629, with
    /// outliers 3.634.</summary>
    public static MustafarOptions HalfInFourBits { get; } = new() { KeySparsity = 0.5, ValueSparsity = 0.5, KeyBits = 4, ValueBits = 4 };

    /// <summary>2 of every 4 channels (<see cref="MustafarOptions.BalancedKeys"/>) in 4 bits, keys with channel scales: 19.5 % of the
    /// bytes, perplexity 3.700, with outliers 3.752. This is the pattern of sparse tensor cores.</summary>
    public static MustafarOptions TwoOfFourInFourBits { get; } = HalfInFourBits with { BalancedKeys = true, BalancedValues = true };

    /// <summary>The default options: the 40 of 128 channels of largest magnitude, unquantised. 37.5 % of the bytes, perplexity
    /// 3.782.</summary>
    public static MustafarOptions Default { get; } = new();
}
