using System.Text.Json;
using System.Text.Json.Nodes;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Evaluation;

/// <summary>Simulated formats as settings of caches say them: <c>key_simulation</c> and <c>value_simulation</c> are names of a
/// <see cref="SimulatedFormat"/>.</summary>
internal static class SimulationSetting
{
    /// <summary>The keys of a setting.</summary>
    public static readonly string[] Keys = [OfKeys, OfValues];

    private const string OfKeys = "key_simulation";
    private const string OfValues = "value_simulation";

    // What a format says itself.
    private static readonly string[] s_saidOfKeys = ["key_sparsity", "balanced_keys", "key_selection", "key_bits", "key_channel_scales", "key_rotation"];
    private static readonly string[] s_saidOfValues = ["value_sparsity", "balanced_values", "value_selection", "value_bits"];

    /// <summary>Options with the simulated formats of a setting.</summary>
    /// <exception cref="CheckpointException">There is no such format, or the setting also says how what it simulates is stored.</exception>
    public static MustafarOptions Apply(MustafarOptions options, JsonElement entry, string place)
    {
        if (Read(entry, OfKeys, s_saidOfKeys, place) is SimulatedFormat keys)
        {
            options = options with
            {
                KeySparsity = 0, BalancedKeys = false, KeyBits = 16, KeyChannelScales = false, KeyRotation = false, KeySelection = keys.Keys,
            };
        }

        return Read(entry, OfValues, s_saidOfValues, place) is SimulatedFormat values
            ? options with { ValueSparsity = 0, BalancedValues = false, ValueBits = 16, ValueSelection = values.Values }
            : options;
    }

    /// <summary>Replaces what is said of simulated keys and values by what <see cref="Apply"/> reads.</summary>
    public static void Say(JsonObject json, MustafarOptions options)
    {
        Say(json, OfKeys, s_saidOfKeys, options.KeySelection);
        Say(json, OfValues, s_saidOfValues, options.ValueSelection);
    }

    private static SimulatedFormat? Read(JsonElement entry, string key, string[] said, string place)
    {
        if (entry.FindString(key, place) is not string name)
        {
            return null;
        }

        if (said.FirstOrDefault(other => entry.Find(other) is not null) is string other)
        {
            throw new CheckpointException($"expected no '{other}' with '{key}', which determines it, but got both.", place);
        }

        try
        {
            return SimulatedFormat.Named(name);
        }
        catch (ArgumentException exception)
        {
            string message = exception.Message.Split(" (Parameter ")[0];
            throw new CheckpointException($"'{key}': {char.ToLowerInvariant(message[0])}{message[1..]}", place);
        }
    }

    private static void Say(JsonObject json, string key, string[] said, ChannelSelection selection)
    {
        if (SimulatedFormat.Of(selection) is SimulatedFormat format)
        {
            Array.ForEach(said, other => json.Remove(other));
            json[key] = format.Name;
        }
    }
}
