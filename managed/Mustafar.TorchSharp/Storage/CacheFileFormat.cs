using System.Globalization;
using Mustafar.Storage;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Names and metadata of cache files; docs/format.md describes them.</summary>
internal static class CacheFileFormat
{
    /// <summary>The version of written files.</summary>
    internal const int Version = 2;

    /// <summary>The version without integers: everything is pruned, and blocks that keep all channels have bitmaps.</summary>
    internal const int FirstVersion = 1;

    internal const string VersionKey = Prefix + "format_version";
    internal const string FingerprintKey = Prefix + "fingerprint";
    internal const string UserPrefix = "user.";

    /// <summary>The latest queries of sequences, and how many each has.</summary>
    internal const string Queries = "value_selection_queries";
    internal const string QueryCounts = "value_selection_query_counts";

    private const string Prefix = "mustafar.";

    /// <summary>The metadata of caches in a file version, in order, apart from the checksum and the caller's metadata.</summary>
    internal static List<KeyValuePair<string, string>> Describe(int version, IReadOnlyList<StoredLayer> layers, string fingerprint)
    {
        StoredLayer first = layers[0];
        List<KeyValuePair<string, string>> metadata =
        [
            new(VersionKey, Text(version)),
            new(FingerprintKey, fingerprint),
            new(Prefix + "layers", Text(layers.Count)),
            new(Prefix + "batch", Text(first.BatchSize)),
            new(Prefix + "num_kv_heads", Text(first.Shape.NumKvHeads)),
            new(Prefix + "head_dim", Text(first.Shape.HeadDim)),
            new(Prefix + "dtype", SafetensorsTypes.Of(first.Shape.DType).Name),
        ];
        metadata.AddRange(layers.Select((layer, i) =>
            new KeyValuePair<string, string>($"{Prefix}options.{Text(i)}", Describe(version, layer.Options, layer.Shape.HeadDim))));
        return metadata;
    }

    /// <summary>The name of a layer's tensor.</summary>
    internal static string TensorName(int layer, string part) => $"layers.{Text(layer)}.{part}";

    /// <summary>The tensors of a layer in a file version, in order.</summary>
    /// <param name="version">The version.</param>
    /// <param name="stored">The layer.</param>
    /// <param name="layer">Its number.</param>
    /// <param name="pages">Pages in the file.</param>
    /// <param name="indices">Indices of pages in the file.</param>
    /// <param name="queryHeads">Heads of the latest queries, if those are in the file.</param>
    internal static IEnumerable<CacheFileTensor> Tensors(int version, StoredLayer stored, int layer, long pages, long indices, long queryHeads)
    {
        long[] sequences = [stored.BatchSize];
        yield return new(Name("lengths"), ScalarType.Int32, sequences);
        yield return new(Name("compressed"), ScalarType.Int32, sequences);
        yield return new(Name("released_pages"), ScalarType.Int32, sequences);
        yield return new(Name("sink_counts"), ScalarType.Int32, sequences);
        yield return new(Name("page_indices"), ScalarType.Int32, [indices]);
        yield return new(Name("key_pages"), ScalarType.Byte, stored.PagesShape(keys: true, version, pages));
        yield return new(Name("value_pages"), ScalarType.Byte, stored.PagesShape(keys: false, version, pages));
        yield return new(Name("window_keys"), stored.Shape.DType, stored.WindowShape);
        yield return new(Name("window_values"), stored.Shape.DType, stored.WindowShape);
        if (stored.Options.SinkTokens > 0)
        {
            yield return new(Name("sink_keys"), ScalarType.Float32, stored.SinksShape);
            yield return new(Name("sink_values"), ScalarType.Float32, stored.SinksShape);
        }

        if (stored.Options.KeyChannelScales)
        {
            yield return new(Name("key_channel_scales"), ScalarType.Float32, stored.ChannelsShape);
        }

        foreach ((string name, _) in stored.Statistics)
        {
            yield return new(Name(name), ScalarType.Float32, stored.ChannelsShape);
        }

        if (stored.Storage.RecentQueries is not null)
        {
            yield return new(Name(QueryCounts), ScalarType.Int32, sequences);
            yield return new(Name(Queries), stored.Shape.DType, [stored.BatchSize, queryHeads, RecentQueries.Most, stored.Shape.HeadDim]);
        }

        string Name(string part) => TensorName(layer, part);
    }

    // Everything that affects what is stored. Sparsity does so through the number of kept channels.
    private static string Describe(int version, MustafarOptions options, int headDim)
    {
        string kept = string.Create(
            CultureInfo.InvariantCulture, $"keys_kept={options.KeysKept(headDim)} values_kept={options.ValuesKept(headDim)}");
        string patterns = version == FirstVersion && options.BalancedKeys == options.BalancedValues
            ? $"balanced={Flag(options.BalancedKeys)}"
            : $"keys_balanced={Flag(options.BalancedKeys)} values_balanced={Flag(options.BalancedValues)}";
        // The first version has only 16 bits, and therefore does not mention them.
        string bits = version == FirstVersion && options is { KeyBits: 16, ValueBits: 16 }
            ? ""
            : string.Create(
                CultureInfo.InvariantCulture,
                $" key_bits={options.KeyBits} value_bits={options.ValueBits} key_channel_scales={Flag(options.KeyChannelScales)}");
        // Files written before there was a choice don't have them.
        string selections = options.KeySelection == KeySelection.Magnitude && options.ValueSelection == ValueSelection.Magnitude
            ? ""
            : $" key_selection={options.KeySelection.Name} value_selection={options.ValueSelection.Name}";
        string rotation = options.KeyRotation ? " key_rotation=1" : "";
        return string.Create(
            CultureInfo.InvariantCulture,
            $"{kept} {patterns}{bits}{rotation} local_window={options.LocalWindow} group_size={options.GroupSize} sliding_window={options.SlidingWindow ?? 0} sink_tokens={options.SinkTokens}{selections}");

        static char Flag(bool value) => value ? '1' : '0';
    }

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);
}

/// <summary>A tensor of a cache file.</summary>
internal readonly record struct CacheFileTensor(string Name, ScalarType DType, long[] Shape);
