using System.Globalization;
using System.Runtime.CompilerServices;
using Mustafar.Native;

namespace Mustafar;

/// <summary>How a <see cref="MustafarCache"/> prunes and stores keys and values.</summary>
/// <remarks>
/// The method is Mustafar (NeurIPS 2025, arXiv 2505.22913, section 3): each token's key and value vector keeps only its channels of
/// largest magnitude, and the most recent tokens stay dense. Values tolerate more pruning than keys: 0.5 for keys and 0.7 for values
/// costs little on most models. Kept channels can be stored in fewer bits, with or without pruning; <see cref="MustafarPresets"/> has
/// combinations with measured size and quality. Limits are those of the native library, which is loaded when the first window, group or
/// balanced pattern is checked. Objects are immutable, so any thread may use them.
/// </remarks>
/// <example>
/// <code>
/// // Half of each key's channels and 70 % of each value's are pruned; the first 4 and the latest 128 tokens stay as they are.
/// MustafarOptions options = new() { KeySparsity = 0.5, ValueSparsity = 0.7, SinkTokens = 4, LocalWindow = 128 };
/// int keys = options.KeysKept(headDim: 128); // 64
/// int values = options.ValuesKept(headDim: 128); // 40
///
/// // The same with what is kept in 4 bits.
/// MustafarOptions fewerBits = options with { KeyBits = 4, ValueBits = 4 };
/// </code>
/// </example>
public sealed record MustafarOptions
{
    // Values are stored in the type of the cache.
    private const int NativeBits = 16;

    private readonly double _keySparsity = 0.7;
    private readonly double _valueSparsity = 0.7;
    private readonly int _keyBits = NativeBits;
    private readonly int _valueBits = NativeBits;
    private readonly bool? _keyChannelScales;
    private readonly int _localWindow = 32;
    private readonly int _groupSize = 64;
    private readonly int _keptMultiple = 8;
    private readonly int? _slidingWindow;
    private readonly int _sinkTokens;
    private readonly KeySelection _keySelection = KeySelection.Magnitude;
    private readonly ValueSelection _valueSelection = ValueSelection.Magnitude;

    /// <summary>Share of each key's channels to prune, 0 to less than 1. 0 keeps all, whatever the pattern. Default 0.7.</summary>
    /// <remarks><see cref="KeysKept"/> is the number of channels that it leaves.</remarks>
    /// <exception cref="ArgumentOutOfRangeException">The value is not in [0, 1).</exception>
    public double KeySparsity
    {
        get => _keySparsity;
        init => _keySparsity = Sparsity(value);
    }

    /// <summary>Share of each value's channels to prune, 0 to less than 1. 0 keeps all, whatever the pattern. Default 0.7.</summary>
    /// <remarks><see cref="ValuesKept"/> is the number of channels that it leaves.</remarks>
    /// <exception cref="ArgumentOutOfRangeException">The value is not in [0, 1).</exception>
    public double ValueSparsity
    {
        get => _valueSparsity;
        init => _valueSparsity = Sparsity(value);
    }

    /// <summary>
    /// Bits per stored number of a key: 8 or 4 for integers with a scale per token and head, or 16, the default, for unquantised numbers of
    /// the cache's type (32 bits in a cache of Float32).
    /// </summary>
    /// <remarks>A token with an infinity or a NaN in any channel becomes NaN as a whole when it is stored in integers.</remarks>
    /// <exception cref="ArgumentOutOfRangeException">The value is not 16, 8 or 4.</exception>
    public int KeyBits
    {
        get => _keyBits;
        init => _keyBits = Bits(value);
    }

    /// <summary>Bits per stored number of a value, like <see cref="KeyBits"/>. Default 16.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not 16, 8 or 4.</exception>
    public int ValueBits
    {
        get => _valueBits;
        init => _valueBits = Bits(value);
    }

    /// <summary>
    /// Whether each channel of a sequence's keys has its own scale. Keys are divided by it before they become integers, and the query is
    /// multiplied by it. By default true if <see cref="KeyBits"/> is below 8.
    /// </summary>
    /// <remarks>
    /// In large models a few key channels are large in all tokens; without channel scales, 4-bit keys are useless there. The scales are
    /// computed from the tokens of a sequence's first compression (<c>docs/format.md</c>) and kept from then on. They cost 4 bytes per
    /// channel of a sequence. Keys of 16 bits have no scales.
    /// </remarks>
    public bool KeyChannelScales
    {
        get => _keyChannelScales ?? KeyBits < 8;
        init => _keyChannelScales = value;
    }

    /// <summary>
    /// Whether 8- or 4-bit keys are rotated before they become integers: multiplied by a Hadamard matrix. Queries are multiplied by it when
    /// they meet such keys, so scores do not change. Default false.
    /// </summary>
    /// <remarks>
    /// A rotation spreads what is large in a few channels over all of them (QuaRot, Ashkboos et al., NeurIPS 2024, arXiv 2404.00456). It
    /// comes after the channel scales and does not replace them: with all channels in 4 bits, the shipped checkpoint has a perplexity of
    /// 3.586 with rotation and 3.592 without (dense 3.568). It needs <see cref="KeySparsity"/> 0, since pruning relies on large channels,
    /// and a head_dim of 64, 128 or 256.
    /// </remarks>
    public bool KeyRotation { get; init; }

    /// <summary>Size of the recent window: the most recent tokens, which are never compressed. Default 32.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is negative or larger than 2^24.</exception>
    public int LocalWindow
    {
        get => _localWindow;
        init => _localWindow = value >= 0 && value <= Limits.MaxLocalWindow
            ? value
            : throw new ArgumentOutOfRangeException(nameof(LocalWindow), value, $"Expected 0 to {Limits.MaxLocalWindow} tokens.");
    }

    /// <summary>Number of tokens that are compressed together, a multiple of 32; also the size of a page. Default 64.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not a positive multiple of 32, at most 2^20.</exception>
    public int GroupSize
    {
        get => _groupSize;
        init => _groupSize = value > 0 && value <= Limits.MaxGroupSize && value % NativeConstants.BlockTokens == 0
            ? value
            : throw new ArgumentOutOfRangeException(
                nameof(GroupSize),
                value,
                $"Expected a multiple of {NativeConstants.BlockTokens}, {NativeConstants.BlockTokens} to {Limits.MaxGroupSize} tokens.");
    }

    /// <summary>The number of kept channels is rounded up to a multiple of this; 1 keeps it exact. Default 8.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int KeptMultiple
    {
        get => _keptMultiple;
        init => _keptMultiple = value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(KeptMultiple), value, "Expected a positive number of channels.");
    }

    /// <summary>Whether keys are pruned to a balanced pattern instead of each token's largest channels. Default false.</summary>
    /// <remarks>
    /// Of every 16 elements 5, 6, 7 or 8 are kept, and at most 2 of every 4, as sparse tensor cores read them
    /// (<see cref="SparsityPattern"/>). GPUs read such patterns faster, at somewhat more loss for the same number of channels. The sparsity
    /// must then be 0, or from 0.5 to 0.6875: a higher one is rounded to that, and a lower one is refused. head_dim is 64, 128 or 256.
    /// <see cref="KeptMultiple"/> is not used. All other options work as usual.
    /// </remarks>
    public bool BalancedKeys { get; init; }

    /// <summary>Whether values are pruned to a balanced pattern, like <see cref="BalancedKeys"/>. Default false.</summary>
    /// <remarks>Caches of Float16 and BFloat16 on CUDA need balanced patterns for both keys and values, or for neither.</remarks>
    public bool BalancedValues { get; init; }

    /// <summary>How the kept channels of keys are chosen. Default <see cref="KeySelection.Magnitude"/>.</summary>
    /// <exception cref="ArgumentNullException">The value is null.</exception>
    public KeySelection KeySelection
    {
        get => _keySelection;
        init => _keySelection = value ?? throw new ArgumentNullException(nameof(KeySelection));
    }

    /// <summary>How the kept channels of values are chosen. Default <see cref="ValueSelection.Magnitude"/>.</summary>
    /// <exception cref="ArgumentNullException">The value is null.</exception>
    public ValueSelection ValueSelection
    {
        get => _valueSelection;
        init => _valueSelection = value ?? throw new ArgumentNullException(nameof(ValueSelection));
    }

    /// <summary>
    /// How many of the latest tokens a token sees, including itself (token i sees j with i − window &lt; j ≤ i, as in Mistral's models),
    /// in addition to the <see cref="SinkTokens"/>; null, the default, for all.
    /// </summary>
    /// <remarks>Pages that no future query sees are reused, so endless generation needs a bounded number of them.</remarks>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int? SlidingWindow
    {
        get => _slidingWindow;
        init => _slidingWindow = value is null or > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(SlidingWindow), value, "Expected a positive number of tokens, or null.");
    }

    /// <summary>
    /// Number of attention sinks: first tokens of each sequence that are never pruned and that every later token sees, even outside the
    /// <see cref="SlidingWindow"/> (Xiao et al., ICLR 2024, arXiv 2309.17453, which uses four). Default 0.
    /// </summary>
    /// <remarks>Positions stay as encoded; they are not shifted when tokens leave the window.</remarks>
    /// <exception cref="ArgumentOutOfRangeException">The value is negative or larger than 2^24.</exception>
    public int SinkTokens
    {
        get => _sinkTokens;
        init => _sinkTokens = value >= 0 && value <= Limits.MaxLocalWindow
            ? value
            : throw new ArgumentOutOfRangeException(nameof(SinkTokens), value, $"Expected 0 to {Limits.MaxLocalWindow} tokens.");
    }

    /// <summary>Which tokens a model's cache (<see cref="MustafarModelCache"/>) removes as sequences grow; null, the default, for
    /// none.</summary>
    public TokenEviction? Eviction { get; init; }

    /// <summary>Channels kept of a key: head_dim − ⌊sparsity · head_dim⌋, rounded up to <see cref="KeptMultiple"/>.</summary>
    /// <param name="headDim">Channels of a key.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="headDim"/> is not positive.</exception>
    /// <exception cref="NotSupportedException">No balanced pattern has this sparsity or head_dim.</exception>
    public int KeysKept(int headDim) => Kept(headDim, KeySparsity, BalancedKeys, nameof(KeySparsity));

    /// <summary>Channels kept of a value: head_dim − ⌊sparsity · head_dim⌋, rounded up to <see cref="KeptMultiple"/>.</summary>
    /// <param name="headDim">Channels of a value.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="headDim"/> is not positive.</exception>
    /// <exception cref="NotSupportedException">No balanced pattern has this sparsity or head_dim.</exception>
    public int ValuesKept(int headDim) => Kept(headDim, ValueSparsity, BalancedValues, nameof(ValueSparsity));

    /// <summary>Checks that the options don't contradict each other.</summary>
    /// <exception cref="ArgumentException">They do.</exception>
    internal void Check()
    {
        if (KeyChannelScales && KeyBits == NativeBits)
        {
            throw new ArgumentException(
                $"Expected {nameof(KeyBits)} of 8 or 4 with {nameof(KeyChannelScales)}, since only integers have scales, but got {KeyBits}.",
                nameof(KeyChannelScales));
        }

        if (KeyRotation && KeyBits == NativeBits)
        {
            throw new ArgumentException(
                $"Expected {nameof(KeyBits)} of 8 or 4 with {nameof(KeyRotation)}, since only integers can be rotated, but got {KeyBits}.", nameof(KeyRotation));
        }

        if (KeyRotation && KeySparsity > 0)
        {
            throw new ArgumentException(
                $"Expected a {nameof(KeySparsity)} of 0 with {nameof(KeyRotation)}, since pruning relies on large channels, which rotation levels, but got {KeySparsity}.",
                nameof(KeyRotation));
        }

        CheckRewritten(KeySelection, KeySparsity, KeyBits, nameof(KeySelection), nameof(KeySparsity), nameof(KeyBits));
        CheckRewritten(ValueSelection, ValueSparsity, ValueBits, nameof(ValueSelection), nameof(ValueSparsity), nameof(ValueBits));
    }

    /// <summary>Checks that a rotation exists for a head_dim.</summary>
    /// <exception cref="NotSupportedException">It does not.</exception>
    internal void CheckRotation(int headDim)
    {
        if (KeyRotation && headDim is not (64 or 128 or 256))
        {
            throw new NotSupportedException($"{nameof(KeyRotation)} needs a head_dim of 64, 128 or 256, but got {headDim}.");
        }
    }

    /// <summary>Checks that the selections don't contradict other options.</summary>
    /// <exception cref="ArgumentException">They do.</exception>
    internal void CheckSelections(int headDim)
    {
        CheckSelection(KeySelection, BalancedKeys, KeysKept(headDim), headDim, nameof(KeySelection));
        CheckSelection(ValueSelection, BalancedValues, ValuesKept(headDim), headDim, nameof(ValueSelection));
    }

    private static void CheckSelection(ChannelSelection selection, bool balanced, int kept, int headDim, string name)
    {
        if (balanced && (selection.IsUneven || selection.Rule is SelectionRule.StructuredKeys or SelectionRule.StructuredValues))
        {
            throw new ArgumentException(
                $"Expected a {name} that chooses within a balanced pattern (magnitude, {(name == nameof(KeySelection) ? "output-aware " : "")}or scores), but got '{selection.Name}'.",
                name);
        }

        if (selection.IsPerChannel && NativeConstants.BlockTokens * kept < headDim)
        {
            throw new ArgumentException(
                $"Expected at least {(headDim + NativeConstants.BlockTokens - 1) / NativeConstants.BlockTokens} of {headDim} channels per token with {name} '{selection.Name}', one token of each channel, but got {kept}.",
                name);
        }
    }

    private static void CheckRewritten(ChannelSelection selection, double sparsity, int bits, string name, string sparsityName, string bitsName)
    {
        if (selection.Rewrites && (sparsity > 0 || bits != NativeBits))
        {
            throw new ArgumentException(
                string.Create(
                    CultureInfo.InvariantCulture,
                    $"Expected {sparsityName} 0 and {bitsName} {NativeBits} with {name} '{selection.Name}', which rewrites what is stored, but got {sparsity} and {bits}."),
                name);
        }
    }

    private int Kept(int headDim, double sparsity, bool balanced, string name)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(headDim);
        if (sparsity == 0)
        {
            return headDim;
        }

        // A product such as 0.29 · 100 falls just short of the whole number it stands for.
        int pruned = (int)Math.Floor((sparsity * headDim) + 1e-9);
        int kept = Math.Max(1, headDim - pruned);
        if (balanced)
        {
            return BalancedKept(headDim, kept, $"{name} of {sparsity.ToString(CultureInfo.InvariantCulture)}");
        }

        return (int)Math.Min(headDim, ((long)kept + KeptMultiple - 1) / KeptMultiple * KeptMultiple);
    }

    private static int BalancedKept(int headDim, int kept, string sparsity)
    {
        if (headDim % 64 != 0)
        {
            throw new NotSupportedException($"Balanced patterns need a head_dim of 64, 128 or 256, but got {headDim}.");
        }

        int unit = headDim / Limits.BalancedUnit;
        int ofUnit = Math.Max(Limits.FewestBalanced, (kept + unit - 1) / unit);
        return ofUnit <= Limits.MostBalanced
            ? ofUnit * unit
            : throw new NotSupportedException(
                $"Balanced patterns keep at most half of the channels, but a {sparsity} keeps {kept} of {headDim}.");
    }

    private static int Bits(int value, [CallerMemberName] string name = "") =>
        value is NativeBits or 8 or 4
            ? value
            : throw new ArgumentOutOfRangeException(name, value, "Expected 16 (the cache's own type, not quantised), 8 or 4.");

    private static double Sparsity(double value, [CallerMemberName] string name = "") =>
        value is >= 0 and < 1
            ? value
            : throw new ArgumentOutOfRangeException(name, value, "Expected a share of the channels, 0 to less than 1.");
}
