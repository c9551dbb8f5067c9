using System.Text.Json.Nodes;
using Mustafar.Models.Llama;

namespace Mustafar.Models.Evaluation;

/// <summary>A named way to cache keys and values, to be compared with others.</summary>
/// <param name="Name">What reports call it.</param>
/// <param name="Options">How the cache prunes and stores; it is dense if null.</param>
public sealed record CacheSetting(string Name, MustafarOptions? Options)
{
    /// <summary>The dense cache, which all others are compared with.</summary>
    public static CacheSetting Dense { get; } = new("dense", null);

    /// <summary>Makes empty sequences for a model.</summary>
    /// <param name="model">The model.</param>
    /// <param name="batchSize">Number of sequences.</param>
    public ModelCache NewCache(LlamaForCausalLM model, int batchSize) =>
        Options is null ? ModelCache.Dense(model, batchSize) : ModelCache.Mustafar(model, Options, batchSize);

    /// <summary>All that the options say, by the names that settings files have.</summary>
    internal JsonObject ToJson()
    {
        JsonObject json = new() { ["name"] = Name };
        if (Options is null)
        {
            json["dense"] = true;
            return json;
        }

        json["key_sparsity"] = Options.KeySparsity;
        json["value_sparsity"] = Options.ValueSparsity;
        json["balanced_keys"] = Options.BalancedKeys;
        json["balanced_values"] = Options.BalancedValues;
        json["key_selection"] = Options.KeySelection.Name;
        json["value_selection"] = Options.ValueSelection.Name;
        json["key_bits"] = Options.KeyBits;
        json["value_bits"] = Options.ValueBits;
        json["key_channel_scales"] = Options.KeyChannelScales;
        json["key_rotation"] = Options.KeyRotation;
        json["local_window"] = Options.LocalWindow;
        json["sinks"] = Options.SinkTokens;
        json["group_size"] = Options.GroupSize;
        json["keep_multiple"] = Options.KeepMultiple;
        json["sliding_window"] = Options.SlidingWindow;
        return json;
    }
}
