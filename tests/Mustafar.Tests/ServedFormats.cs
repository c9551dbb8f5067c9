using static TorchSharp.torch;

namespace Mustafar.Tests;

/// <summary>Which caches a device serves, as the readme says: the CPU all, CUDA not all that hold integers or mix patterns.</summary>
internal static class ServedFormats
{
    private enum Kept
    {
        All,
        Balanced,
        Unstructured,
    }

    /// <summary>Whether such a cache can be made.</summary>
    internal static bool Serves(string device, ScalarType dtype, int headDim, MustafarOptions options)
    {
        if (device == "cpu")
        {
            return true;
        }

        (int keysKept, int valuesKept) = (options.KeysKept(headDim), options.ValuesKept(headDim));
        Kept keys = KeptOf(keysKept, options.BalancedKeys, headDim), values = KeptOf(valuesKept, options.BalancedValues, headDim);
        bool hasTensorCoreKernels = dtype != ScalarType.Float32 && headDim is 64 or 128;
        if (!HasIntegers(options))
        {
            return !hasTensorCoreKernels || (keys == Kept.Balanced) == (values == Kept.Balanced);
        }

        bool areTwoOfFour = options is { KeyBits: 4, ValueBits: 4 } && (2 * keysKept, 2 * valuesKept) == (headDim, headDim);
        return hasTensorCoreKernels && options is { KeyBits: 8 or 4, ValueBits: 8 or 4 } && keys == values &&
            (keys == Kept.Unstructured || (keys == Kept.All ? options.KeyBits == options.ValueBits : areTwoOfFour));
    }

    /// <summary>Whether a cache with compressed tokens can be saved, and restored from a file.</summary>
    internal static bool Saves(string device, MustafarOptions options) => device == "cpu" || !HasIntegers(options);

    /// <summary>The same options if they are served; else others like them that are, without integers where there are none.</summary>
    internal static MustafarOptions Nearest(string device, ScalarType dtype, int headDim, MustafarOptions options)
    {
        if (Serves(device, dtype, headDim, options))
        {
            return options;
        }

        int bits = Math.Min(options.KeyBits, options.ValueBits);
        MustafarOptions alike = options with { KeyBits = bits, ValueBits = bits };
        MustafarOptions balanced = options with
        {
            KeyBits = Math.Max(bits & 16, 4), ValueBits = Math.Max(bits & 16, 4), KeySparsity = 0.5, ValueSparsity = 0.5, BalancedKeys = true, BalancedValues = true,
        };
        MustafarOptions native = options with { KeyBits = 16, ValueBits = 16, KeyChannelScales = false };
        MustafarOptions[] others = headDim % 64 == 0 && (options.BalancedKeys || options.BalancedValues)
            ? [balanced, native with { BalancedKeys = false, BalancedValues = false }]
            : [alike, alike with { KeySparsity = 0, ValueSparsity = 0 }, native];
        return others.First(other => Serves(device, dtype, headDim, other));
    }

    private static bool HasIntegers(MustafarOptions options) => options is not { KeyBits: 16, ValueBits: 16 };

    private static Kept KeptOf(int channels, bool balanced, int headDim) =>
        channels == headDim ? Kept.All : balanced ? Kept.Balanced : Kept.Unstructured;
}
