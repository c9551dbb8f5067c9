using System.Text.Json.Nodes;
using Mustafar.Models.Llama;

namespace Mustafar.Models.Evaluation;

/// <summary>A named configuration of a cache, to be compared with others.</summary>
/// <param name="Name">The name in reports.</param>
/// <param name="Options">How the cache prunes and stores tokens; null for a dense cache.</param>
public sealed record CacheSetting(string Name, MustafarOptions? Options)
{
    /// <summary>The dense cache, with which all others are compared.</summary>
    public static CacheSetting Dense { get; } = new("dense", null);

    /// <summary>The options of each layer if layers differ; null if <see cref="Options"/> applies to all.</summary>
    /// <remarks>All layers share the windows and groups of <see cref="Options"/>.</remarks>
    public IReadOnlyList<MustafarOptions>? Layers { get; init; }

    /// <summary>Whether keys or values of any layer are in a <see cref="SimulatedFormat"/>, whose bytes are computed.</summary>
    public bool IsSimulated => AllOptions.Any(options => SimulatedFormat.Of(options.KeySelection) is not null || SimulatedFormat.Of(options.ValueSelection) is not null);

    private IReadOnlyList<MustafarOptions> AllOptions => Layers ?? (Options is null ? [] : [Options]);

    /// <summary>Makes an empty cache for a model.</summary>
    /// <param name="model">The model.</param>
    /// <param name="batchSize">Number of sequences.</param>
    /// <exception cref="ArgumentException">The setting has options for a different number of layers than the model has.</exception>
    public ModelCache NewCache(LlamaForCausalLM model, int batchSize) => Layers is not null
        ? ModelCache.Mustafar(model, Layers, batchSize)
        : Options is not null ? ModelCache.Mustafar(model, Options, batchSize) : ModelCache.Dense(model, batchSize);

    /// <summary>Throws if a model's keys and values can't be compressed with these options.</summary>
    /// <param name="config">The model's configuration.</param>
    /// <param name="path">Path of its config.json, for messages.</param>
    /// <exception cref="Checkpoint.UnsupportedModelException">The options don't fit the model.</exception>
    public void CheckFits(LlamaConfig config, string path)
    {
        ArgumentNullException.ThrowIfNull(config);
        if (Layers is not null && Layers.Count != config.NumLayers)
        {
            throw new Checkpoint.UnsupportedModelException(
                $"the model has {config.NumLayers} layers, but the cache setting '{Name}' has options for {Layers.Count}: it was made for another model.", path);
        }

        foreach (MustafarOptions options in AllOptions)
        {
            config.CheckCompressible(options, path);
            foreach (SimulatedFormat? format in (SimulatedFormat?[])[SimulatedFormat.Of(options.KeySelection), SimulatedFormat.Of(options.ValueSelection)])
            {
                if (format?.FindProblem(config.HeadDim, options.GroupSize) is string problem)
                {
                    throw new Checkpoint.UnsupportedModelException($"setting '{Name}', simulated format '{format.Name}': {problem}", path);
                }
            }
        }
    }

    /// <summary>Bytes in use by a cache of this setting. Simulated formats count with the bytes that they would take.</summary>
    internal static long UsedBytes(ModelCache cache)
    {
        long bytes = cache.Cache.Usage.UsedBytes;
        if (cache.Cache is MustafarModelCache compressed)
        {
            CacheShape shape = CacheShape.Checked(compressed.KeyValueShape, compressed.DType, compressed.Device);
            foreach (MustafarOptions options in compressed.Options)
            {
                LayerFormat format = new(shape, options);
                bytes += compressed.UsedPages * shape.NumKvHeads * (Saved(options.KeySelection, format.KeyBytes) + Saved(options.ValueSelection, format.ValueBytes));

                // Bytes of the simulated format minus those that are stored, for one head in a page.
                long Saved(ChannelSelection selection, long stored) => SimulatedFormat.Of(selection) is SimulatedFormat simulated
                    ? (long)(simulated.BitsPerNumber(shape.HeadDim) * shape.HeadDim * options.GroupSize / 8) - stored
                    : 0;
            }
        }

        return bytes;
    }

    /// <summary>All options, under the keys of settings files.</summary>
    internal JsonObject ToJson()
    {
        JsonObject json = new() { ["name"] = Name };
        if (Options is null)
        {
            json["dense"] = true;
            return json;
        }

        AddFormat(json, Options);
        json["local_window"] = Options.LocalWindow;
        json["sinks"] = Options.SinkTokens;
        json["group_size"] = Options.GroupSize;
        json["kept_multiple"] = Options.KeptMultiple;
        json["sliding_window"] = Options.SlidingWindow;
        if (Options.Eviction is not null)
        {
            EvictionSetting.AddTo(json, Options.Eviction);
        }

        if (Layers is not null)
        {
            json[CacheSettingReader.Layers] = new JsonArray([.. Layers.Select(layer =>
            {
                JsonObject own = [];
                AddFormat(own, layer);
                return own;
            })]);
        }

        return json;
    }

    // The options that may differ between layers.
    private static void AddFormat(JsonObject json, MustafarOptions options)
    {
        json["key_sparsity"] = options.KeySparsity;
        json["value_sparsity"] = options.ValueSparsity;
        json["balanced_keys"] = options.BalancedKeys;
        json["balanced_values"] = options.BalancedValues;
        json["key_selection"] = options.KeySelection.Name;
        json["value_selection"] = options.ValueSelection.Name;
        json["key_bits"] = options.KeyBits;
        json["value_bits"] = options.ValueBits;
        json["key_channel_scales"] = options.KeyChannelScales;
        json["key_rotation"] = options.KeyRotation;
        SimulationSetting.Say(json, options);
    }
}
