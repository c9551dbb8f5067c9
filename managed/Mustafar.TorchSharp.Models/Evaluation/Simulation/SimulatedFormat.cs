using System.Globalization;
using static TorchSharp.torch;

namespace Mustafar.Models.Evaluation;

/// <summary>A format of keys or values that caches do not have, to measure what it costs in quality.</summary>
/// <remarks>
/// <see cref="Keys"/> and <see cref="Values"/> keep all channels in 16 bits, with the values that the format would give them, so speed and
/// memory are those of 16 bits. Reports show the bytes by <see cref="BitsPerNumber"/>. Scales, minima and means are Float16 and counted.
/// <c>docs/accuracy.md</c> describes the formats.
/// </remarks>
public sealed class SimulatedFormat
{
    private const int KiviGroup = 64;

    // Of a scale, a minimum or a mean.
    private const int ScaleBits = 16;

    private readonly Func<int, double> _rowBits;
    private readonly int _mostKept;
    private readonly int _channels;
    private readonly int _tokens;

    // rewritten: maps keys or values, Float32 [num_kv_heads, tokens, head_dim]; rowBits: bits of a row by its head_dim; mostKept: the head_dim
    // must be above it; channels, tokens: head_dim and the group size must be multiples of these.
    private SimulatedFormat(
        string name, Func<Tensor, bool, Tensor> rewritten, Func<int, double> rowBits, int mostKept = 0, int channels = 1, int tokens = 1)
    {
        (Name, _rowBits, _mostKept, _channels, _tokens) = (name, rowBits, mostKept, channels, tokens);
        Keys = KeySelection.Rewritten(name, input => Rewritten(input, isKey: true));
        Values = ValueSelection.Rewritten(name, input => Rewritten(input, isKey: false));

        Tensor Rewritten(SelectionInput input, bool isKey)
        {
            (int count, int headDim) = ((int)input.Tokens.size(1), (int)input.Tokens.size(2));
            return FindProblem(headDim, count) is string problem
                ? throw new InvalidOperationException($"Simulated format '{Name}': {problem}")
                : rewritten(input.Tokens.to(ScalarType.Float32), isKey).to(input.Tokens.dtype);
        }
    }

    /// <summary>All names, as error messages and help texts show them.</summary>
    public static string Names => "fp8-e4m3, int{8|4|3|2}-g{128|64|32}, kivi-int{8|4|3|2}, signs-KEPT, signs-KEPT-int4";

    /// <summary>Its name in settings and in the files of saved caches.</summary>
    public string Name { get; }

    /// <summary>Keys in this format.</summary>
    public KeySelection Keys { get; }

    /// <summary>Values in this format.</summary>
    public ValueSelection Values { get; }

    /// <summary>A format by its name.</summary>
    /// <param name="name">One of <see cref="Names"/>.</param>
    /// <exception cref="ArgumentException">There is no such format.</exception>
    public static SimulatedFormat Named(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        return Find(name) ?? throw new ArgumentException($"Expected one of {Names}, but got '{name}'.", nameof(name));
    }

    /// <summary>Bits per channel of a key or value, including bitmaps, scales and whatever else the format stores.</summary>
    /// <param name="headDim">Channels of a key.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="headDim"/> is not positive.</exception>
    public double BitsPerNumber(int headDim)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(headDim);
        return _rowBits(headDim) / headDim;
    }

    /// <summary>The format that a selection simulates; null if it simulates none.</summary>
    internal static SimulatedFormat? Of(ChannelSelection selection) => selection.Rewrites ? Find(selection.Name) : null;

    /// <summary>What keeps keys or values from having this format; null if nothing does.</summary>
    /// <param name="headDim">Channels of a key.</param>
    /// <param name="groupSize">Tokens that are compressed together.</param>
    internal string? FindProblem(int headDim, int groupSize) =>
        headDim <= _mostKept ? $"expected a head_dim above {_mostKept}, but got {headDim}."
            : headDim % _channels > 0 ? $"expected a head_dim that is a multiple of {_channels}, but got {headDim}."
            : groupSize % _tokens > 0 ? $"expected groups of a multiple of {_tokens} tokens, but got {groupSize}."
            : null;

    private static SimulatedFormat? Find(string name) => name.Split('-') switch
    {
        ["fp8", "e4m3"] => new(name, (rows, _) => SimulatedNumbers.E4M3(rows), headDim => 8 * headDim),
        ["signs", string word] when Kept(word) is int kept => Signs(name, kept, bits: 16),
        ["signs", string word, "int4"] when Kept(word) is int kept => Signs(name, kept, bits: 4),
        ["kivi", string word] when Bits(word) is int bits => Kivi(name, bits),
        [string first, "g128" or "g64" or "g32"] when Bits(first) is int bits => PerToken(name, bits, int.Parse(name[(first.Length + 2)..], CultureInfo.InvariantCulture)),
        _ => null,
    };

    private static int? Bits(string word) => word is "int8" or "int4" or "int3" or "int2" ? word[^1] - '0' : null;

    private static int? Kept(string word) =>
        int.TryParse(word, NumberStyles.None, CultureInfo.InvariantCulture, out int kept) && kept > 0 ? kept : null;

    // A bitmap, the kept numbers, the scale of those in few bits, a sign for each of the others, their mean magnitude.
    private static SimulatedFormat Signs(string name, int kept, int bits) => new(
        name,
        (rows, _) => SimulatedNumbers.Signs(rows, kept, bits),
        headDim => headDim + (kept * bits) + (bits < 16 ? ScaleBits : 0) + (headDim - kept) + ScaleBits,
        mostKept: kept);

    private static SimulatedFormat PerToken(string name, int bits, int group) =>
        new(name, (rows, _) => OfChannels(rows, bits, group), headDim => Integers(headDim, bits, group), channels: group);

    // Keys per channel, values per token: KIVI, Liu et al., ICML 2024, arXiv 2402.02750.
    private static SimulatedFormat Kivi(string name, int bits) => new(
        name,
        (rows, isKey) => isKey ? OfTokens(rows, bits, KiviGroup) : OfChannels(rows, bits, KiviGroup),
        headDim => Integers(headDim, bits, KiviGroup),
        channels: KiviGroup,
        tokens: KiviGroup);

    // Each group has a minimum and a step.
    private static double Integers(int numbers, int bits, int group) => numbers * (bits + (2.0 * ScaleBits / group));

    private static Tensor OfChannels(Tensor rows, int bits, int group) =>
        SimulatedNumbers.Asymmetric(rows.reshape(rows.size(0), rows.size(1), -1, group), bits).reshape(rows.shape);

    private static Tensor OfTokens(Tensor rows, int bits, int group)
    {
        Tensor channels = rows.reshape(rows.size(0), -1, group, rows.size(2)).transpose(2, 3);
        return SimulatedNumbers.Asymmetric(channels, bits).transpose(2, 3).reshape(rows.shape);
    }
}
