using System.Globalization;

namespace Mustafar.Models.Evaluation;

/// <summary>A format of a layer's keys, or values.</summary>
/// <param name="Name">The name in reports.</param>
/// <param name="Options">Options whose key part, or value part, is this format.</param>
/// <param name="BlockBytes">Bytes of a block of 32 tokens of one head.</param>
internal sealed record OperandCandidate(string Name, MustafarOptions Options, long BlockBytes)
{
    // Of 16 channels. Formats between these are seldom worth more than a mixture of their neighbours in different layers. Pruned rows of
    // 16-bit numbers take more bytes than 8-bit rows with more channels, and lose more.
    private static readonly int[] s_keptInEightBits = [16, 12, 10, 8];
    private static readonly int[] s_keptInFourBits = [16, 10, 8, 7, 6, 5, 4, 3, 2];

    /// <summary>The formats that are tried by default: 16 bits unpruned, and 8 and 4 bits with several shares of the channels.</summary>
    /// <param name="basis">Options for everything else.</param>
    public static IEnumerable<MustafarOptions> Defaults(MustafarOptions basis)
    {
        foreach (int kept in s_keptInEightBits)
        {
            yield return Of(8, kept, false);
        }

        foreach (int kept in s_keptInFourBits)
        {
            yield return Of(4, kept, true);
            yield return Of(4, kept, false);
        }

        MustafarOptions Of(int bits, int kept, bool channelScales)
        {
            double sparsity = 1 - (kept / 16.0);
            return basis with
            {
                KeySparsity = sparsity, ValueSparsity = sparsity, BalancedKeys = false, BalancedValues = false,
                KeyBits = bits, ValueBits = bits, KeyChannelScales = channelScales, KeyRotation = false,
            };
        }
    }

    /// <summary>Options that store everything unchanged.</summary>
    public static MustafarOptions Unchanged(MustafarOptions basis) => basis with
    {
        KeySparsity = 0, ValueSparsity = 0, BalancedKeys = false, BalancedValues = false, KeyBits = 16, ValueBits = 16, KeyChannelScales = false,
        KeyRotation = false, KeySelection = KeySelection.Magnitude, ValueSelection = ValueSelection.Magnitude,
    };

    /// <summary>Options with the keys of one, the values of another, and everything else of a basis.</summary>
    public static MustafarOptions Combine(MustafarOptions keys, MustafarOptions values, MustafarOptions basis) => basis with
    {
        KeySparsity = keys.KeySparsity,
        BalancedKeys = keys.BalancedKeys,
        KeyBits = keys.KeyBits,
        KeyChannelScales = keys.KeyChannelScales,
        KeyRotation = keys.KeyRotation,
        KeySelection = keys.KeySelection,
        ValueSparsity = values.ValueSparsity,
        BalancedValues = values.BalancedValues,
        ValueBits = values.ValueBits,
        ValueSelection = values.ValueSelection,
    };

    /// <summary>Keys, or values, in words, such as "64 of 128 in 4 bits".</summary>
    public static string Describe(MustafarOptions options, bool keys, int headDim)
    {
        (int kept, int bits, bool balanced) = keys
            ? (options.KeysKept(headDim), options.KeyBits, options.BalancedKeys)
            : (options.ValuesKept(headDim), options.ValueBits, options.BalancedValues);
        ChannelSelection selected = keys ? options.KeySelection : options.ValueSelection;
        if (selected.Rewrites)
        {
            return $"simulated as {selected.Name}";
        }

        string channels = kept == headDim ? "all" : string.Create(CultureInfo.InvariantCulture, $"{kept} of {headDim}");
        string pattern = balanced && kept < headDim ? " balanced" : "";
        string numbers = bits == 16 ? " as they are" : string.Create(CultureInfo.InvariantCulture, $" in {bits} bits");
        string scales = !keys || bits == 16 || options.KeyChannelScales == bits < 8 ? "" : options.KeyChannelScales ? ", channel scales" : ", no channel scales";
        string selection = kept == headDim || selected.Name == KeySelection.Magnitude.Name ? "" : $", chosen {selected.Name}";
        string rotation = keys && options.KeyRotation ? ", rotated" : "";
        return channels + pattern + numbers + scales + selection + rotation;
    }
}
