namespace Mustafar;

/// <summary>Which channels of keys or values are kept.</summary>
public enum SparsityPattern
{
    /// <summary>Of each token the channels of largest magnitude. (Mustafar, section 3.)</summary>
    Unstructured = 0,

    /// <summary>
    /// For keys: of each unit of 16 channels of a token the largest 5, 6, 7 or 8, at most 2 of each group of 4. Group i of unit
    /// 4p + j has the channels 16p + j + 4i + m · head_dim / 4, m = 0 … 3; so every token has as many channels as every other.
    /// </summary>
    BalancedKeys = 1,

    /// <summary>
    /// For values: the same for units of 4 neighbouring channels of 4 consecutive tokens, a group being one of the channels. Tokens
    /// may have different numbers of channels; every 4 tokens together have their share.
    /// </summary>
    BalancedValues = 2,

    /// <summary>All of them: what is saved is saved by fewer bits.</summary>
    All = 3,
}
