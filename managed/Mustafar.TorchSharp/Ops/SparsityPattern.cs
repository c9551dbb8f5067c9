namespace Mustafar;

/// <summary>Which channels of keys or values are kept.</summary>
public enum SparsityPattern
{
    /// <summary>The channels of largest magnitude of each token. (Mustafar, section 3.)</summary>
    Unstructured = 0,

    /// <summary>
    /// For keys: the largest 5, 6, 7 or 8 of each unit of 16 channels of a token, at most 2 of each group of 4. Group i of unit
    /// 4p + j has the channels 16p + j + 4i + m · head_dim / 4, m = 0 … 3. Every token keeps equally many channels.
    /// </summary>
    BalancedKeys = 1,

    /// <summary>
    /// For values: the same for units of 4 neighbouring channels of 4 consecutive tokens, where a group is one of the channels. Tokens
    /// may keep different numbers of channels; every 4 tokens together have their share.
    /// </summary>
    BalancedValues = 2,

    /// <summary>All channels: memory is saved only by fewer bits.</summary>
    All = 3,
}
