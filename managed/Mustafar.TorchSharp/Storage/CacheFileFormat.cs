using System.Globalization;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Names and metadata of files that hold caches; docs/format.md describes them.</summary>
internal static class CacheFileFormat
{
    internal const int Version = 1;
    internal const string VersionKey = Prefix + "format_version";
    internal const string FingerprintKey = Prefix + "fingerprint";
    internal const string UserPrefix = "user.";

    private const string Prefix = "mustafar.";

    /// <summary>What a file says of caches, in order; the checksum and the caller's metadata apart.</summary>
    internal static List<KeyValuePair<string, string>> Describe(IReadOnlyList<StoredLayer> layers, string fingerprint)
    {
        StoredLayer first = layers[0];
        List<KeyValuePair<string, string>> metadata =
        [
            new(VersionKey, Text(Version)),
            new(FingerprintKey, fingerprint),
            new(Prefix + "layers", Text(layers.Count)),
            new(Prefix + "batch", Text(first.BatchSize)),
            new(Prefix + "num_kv_heads", Text(first.Shape.NumKvHeads)),
            new(Prefix + "head_dim", Text(first.Shape.HeadDim)),
            new(Prefix + "dtype", SafetensorsTypes.Of(first.Shape.DType).Name),
        ];
        metadata.AddRange(layers.Select((layer, i) =>
            new KeyValuePair<string, string>($"{Prefix}options.{Text(i)}", Describe(layer.Options, layer.Shape.HeadDim))));
        return metadata;
    }

    /// <summary>The name of a layer's tensor.</summary>
    internal static string TensorName(int layer, string part) => $"layers.{Text(layer)}.{part}";

    /// <summary>The tensors of a layer, in order.</summary>
    internal static IEnumerable<CacheFileTensor> Tensors(StoredLayer stored, int layer, long pages, long indices)
    {
        long[] sequences = [stored.BatchSize];
        yield return new(Name("lengths"), ScalarType.Int32, sequences);
        yield return new(Name("compressed"), ScalarType.Int32, sequences);
        yield return new(Name("released_pages"), ScalarType.Int32, sequences);
        yield return new(Name("sink_counts"), ScalarType.Int32, sequences);
        yield return new(Name("page_indices"), ScalarType.Int32, [indices]);
        yield return new(Name("key_pages"), ScalarType.Byte, stored.PagesShape(keys: true, pages));
        yield return new(Name("value_pages"), ScalarType.Byte, stored.PagesShape(keys: false, pages));
        yield return new(Name("window_keys"), stored.Shape.DType, stored.WindowShape);
        yield return new(Name("window_values"), stored.Shape.DType, stored.WindowShape);
        if (stored.Options.SinkTokens > 0)
        {
            yield return new(Name("sink_keys"), ScalarType.Float32, stored.SinksShape);
            yield return new(Name("sink_values"), ScalarType.Float32, stored.SinksShape);
        }

        string Name(string part) => TensorName(layer, part);
    }

    // Whatever bears on what is stored. Sparsity does so by the channels that are kept.
    private static string Describe(MustafarOptions options, int headDim) => string.Create(
        CultureInfo.InvariantCulture,
        $"keys_kept={options.KeysKept(headDim)} values_kept={options.ValuesKept(headDim)} balanced={(options.Balanced ? 1 : 0)} local_window={options.LocalWindow} group_size={options.GroupSize} sliding_window={options.SlidingWindow ?? 0} sink_tokens={options.SinkTokens}");

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);
}

/// <summary>A tensor of a file that holds caches.</summary>
internal readonly record struct CacheFileTensor(string Name, ScalarType DType, long[] Shape);
