using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Evaluation;

/// <summary>Reads cache settings from a JSON file, or one from a line of text.</summary>
/// <remarks>
/// A file is one JSON object. Each key is the name of a setting; its value is the name of a preset (<see cref="Presets"/>) or an object
/// with any of <c>preset</c>, <c>key_sparsity</c>, <c>value_sparsity</c>, <c>balanced_keys</c>, <c>balanced_values</c>,
/// <c>key_selection</c>, <c>value_selection</c>, <c>key_bits</c>, <c>value_bits</c>, <c>key_channel_scales</c>, <c>key_rotation</c>,
/// <c>local_window</c>, <c>sinks</c>, <c>group_size</c>, <c>kept_multiple</c> and <c>sliding_window</c>, and <c>eviction</c>
/// (<c>streaming-llm</c>, <c>snapkv</c> or <c>h2o</c>) with <c>capacity</c>, <c>recent_tokens</c> and <c>kernel_size</c>
/// (<see cref="TokenEviction"/>). <c>key_simulation</c> and <c>value_simulation</c>, the name of a <see cref="SimulatedFormat"/>, replace
/// all other options of keys, or values:
/// <code>{ "4 bits": "FourBits", "64 / 40": { "key_sparsity": 0.5, "value_sparsity": 0.6875 } }</code>
/// Where layers differ, <c>layers</c> is an array with a preset or an object for each layer, for the options that the setting itself does
/// not specify for all of them. Windows and groups are the same in all layers:
/// <code>{ "first layer in 8 bits": { "local_window": 64, "layers": [ "EightBits", "FourBits", { "key_bits": 4, "value_sparsity": 0.5 } ] } }</code>
/// <see cref="CacheSettingWriter"/> writes such files.
/// As text, the same settings are <c>4 bits: FourBits</c> and <c>64 / 40: key_sparsity=0.5, value_sparsity=0.6875</c>. Options that a
/// setting leaves out come from its preset or, without one, from the defaults.
/// </remarks>
public static class CacheSettingReader
{
    internal const string Layers = "layers";

    private const string Preset = "preset";

    private static readonly (string Property, string Key)[] s_keys =
    [
        (nameof(MustafarOptions.KeySparsity), "key_sparsity"), (nameof(MustafarOptions.ValueSparsity), "value_sparsity"),
        (nameof(MustafarOptions.BalancedKeys), "balanced_keys"), (nameof(MustafarOptions.BalancedValues), "balanced_values"),
        (nameof(MustafarOptions.KeySelection), "key_selection"), (nameof(MustafarOptions.ValueSelection), "value_selection"),
        (nameof(MustafarOptions.KeyBits), "key_bits"), (nameof(MustafarOptions.ValueBits), "value_bits"),
        (nameof(MustafarOptions.KeyChannelScales), "key_channel_scales"), (nameof(MustafarOptions.KeyRotation), "key_rotation"),
        (nameof(MustafarOptions.LocalWindow), "local_window"),
        (nameof(MustafarOptions.SinkTokens), "sinks"), (nameof(MustafarOptions.GroupSize), "group_size"),
        (nameof(MustafarOptions.KeptMultiple), "kept_multiple"), (nameof(MustafarOptions.SlidingWindow), "sliding_window"),
    ];

    private static readonly string[] s_commonKeys = ["local_window", "sinks", "group_size", "sliding_window"];

    /// <summary>The presets by name: those of <see cref="MustafarPresets"/>.</summary>
    public static IReadOnlyDictionary<string, MustafarOptions> Presets { get; } =
        new Dictionary<string, MustafarOptions>(StringComparer.OrdinalIgnoreCase)
        {
            [nameof(MustafarPresets.EightBits)] = MustafarPresets.EightBits,
            [nameof(MustafarPresets.FourBits)] = MustafarPresets.FourBits,
            [nameof(MustafarPresets.HalfInFourBits)] = MustafarPresets.HalfInFourBits,
            [nameof(MustafarPresets.TwoOfFourInFourBits)] = MustafarPresets.TwoOfFourInFourBits,
            [nameof(MustafarPresets.Default)] = MustafarPresets.Default,
        };

    /// <summary>Reads a file of settings.</summary>
    /// <param name="path">The file.</param>
    /// <param name="defaults">The values of options that settings leave out; those of a new <see cref="MustafarOptions"/> if null.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="UnusableFileException">It is not a JSON object, or a setting is not valid; the message names the setting and the
    /// key.</exception>
    public static IReadOnlyList<CacheSetting> Load(string path, MustafarOptions? defaults = null)
    {
        ArgumentNullException.ThrowIfNull(path);
        using JsonDocument document = JsonFile.Open(path);
        List<CacheSetting> settings =
            [.. document.RootElement.EnumerateObject().Select(entry => Read(path, entry.Name, entry.Value, defaults ?? new MustafarOptions()))];
        return settings.Count > 0 ? settings : throw new CheckpointException("expected at least one setting, but the object is empty.", path);
    }

    /// <summary>Reads a setting from a line of text.</summary>
    /// <param name="text"><c>NAME: PRESET</c>, <c>NAME: key=value, key=value</c>, both together, or a preset alone.</param>
    /// <param name="defaults">The values of options that the text leaves out; those of a new <see cref="MustafarOptions"/> if null.</param>
    /// <exception cref="UnusableFileException">It is not valid; the message names the setting and the key.</exception>
    public static CacheSetting Parse(string text, MustafarOptions? defaults = null)
    {
        ArgumentNullException.ThrowIfNull(text);
        // A name may have a colon, as in 2:4.
        int colon = text.IndexOf(": ", StringComparison.Ordinal);
        colon = colon < 0 ? text.IndexOf(':', StringComparison.Ordinal) : colon;
        string name = (colon < 0 ? text : text[..colon]).Trim();
        JsonObject entry = [];
        foreach (string word in text[(colon + 1)..].Split(',', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries))
        {
            string[] pair = word.Split('=', 2, StringSplitOptions.TrimEntries);
            string key = pair.Length == 1 ? Preset : pair[0];
            if (!entry.TryAdd(key, ValueOf(pair[^1])))
            {
                throw new CheckpointException($"expected '{key}' once, but it is there twice.", $"setting '{name}'");
            }
        }

        using JsonDocument document = JsonDocument.Parse(entry.ToJsonString());
        return Read("", name, document.RootElement, defaults ?? new MustafarOptions());
    }

    /// <summary>The dense setting, followed by others.</summary>
    /// <exception cref="ArgumentException">Two settings have the same name, or one has that of the dense setting.</exception>
    public static IReadOnlyList<CacheSetting> WithDense(IEnumerable<CacheSetting> settings)
    {
        CacheSetting[] all = [CacheSetting.Dense, .. settings];
        string? repeated = all.GroupBy(setting => setting.Name).FirstOrDefault(group => group.Count() > 1)?.Key;
        return repeated is null
            ? all
            : throw new ArgumentException(
                $"Expected settings of different names ('{CacheSetting.Dense.Name}' is always there), but there are two '{repeated}'.", nameof(settings));
    }

    // Words that look like numbers or Boolean values are read as such.
    private static JsonValue ValueOf(string word)
    {
        try
        {
            return JsonNode.Parse(word) is JsonValue value && value.GetValueKind() != JsonValueKind.String ? value : JsonValue.Create(word);
        }
        catch (JsonException)
        {
            return JsonValue.Create(word);
        }
    }

    private static CacheSetting Read(string file, string name, JsonElement entry, MustafarOptions defaults)
    {
        string place = file.Length == 0 ? $"setting '{name}'" : $"{file}: setting '{name}'";
        if (string.IsNullOrWhiteSpace(name))
        {
            throw new CheckpointException("expected a name for each setting, but one is empty.", place);
        }

        if (entry.ValueKind == JsonValueKind.String)
        {
            return new CacheSetting(name, PresetOf(entry.GetString()!, defaults, place));
        }

        if (entry.ValueKind != JsonValueKind.Object)
        {
            throw new CheckpointException($"expected an object or the name of a preset, but got {entry.Quote()}.", place);
        }

        CheckKeys(entry, [Preset, .. s_keys.Select(known => known.Key), .. SimulationSetting.Keys, .. EvictionSetting.Keys, Layers], place);
        MustafarOptions options = OptionsOf(entry, defaults, place);
        return new CacheSetting(name, options)
        {
            Layers = entry.Find(Layers) is JsonElement layers ? LayersOf(layers, options, place) : null,
        };
    }

    private static List<MustafarOptions> LayersOf(JsonElement layers, MustafarOptions common, string place)
    {
        if (layers.ValueKind != JsonValueKind.Array || layers.GetArrayLength() == 0)
        {
            throw new CheckpointException($"expected an array with the options of each layer as '{Layers}', but got {layers.Quote()}.", place);
        }

        List<MustafarOptions> options = [];
        foreach (JsonElement layer in layers.EnumerateArray())
        {
            string layerPlace = string.Create(CultureInfo.InvariantCulture, $"{place}, layer {options.Count}");
            if (layer.ValueKind == JsonValueKind.String)
            {
                options.Add(PresetOf(layer.GetString()!, common, layerPlace));
                continue;
            }

            if (layer.ValueKind != JsonValueKind.Object)
            {
                throw new CheckpointException($"expected an object or the name of a preset, but got {layer.Quote()}.", layerPlace);
            }

            CheckKeys(layer, [Preset, .. s_keys.Select(known => known.Key).Except(s_commonKeys), .. SimulationSetting.Keys], layerPlace);
            options.Add(OptionsOf(layer, common, layerPlace));
        }

        return options;
    }

    private static void CheckKeys(JsonElement entry, IReadOnlyCollection<string> known, string place)
    {
        foreach (JsonProperty property in entry.EnumerateObject().Where(property => !known.Contains(property.Name)))
        {
            throw new CheckpointException($"expected {string.Join(", ", known)}, but got '{property.Name}'.", place);
        }
    }

    private static MustafarOptions OptionsOf(JsonElement entry, MustafarOptions defaults, string place)
    {
        MustafarOptions basis = entry.FindString(Preset, place) is string preset ? PresetOf(preset, defaults, place) : defaults;
        return Checked(() => Changed(basis, entry, place), place);
    }

    // Windows and groups come from the defaults: presets only say what is kept of a token.
    private static MustafarOptions PresetOf(string name, MustafarOptions defaults, string place) =>
        Presets.TryGetValue(name, out MustafarOptions? preset)
            ? preset with
            {
                LocalWindow = defaults.LocalWindow, SinkTokens = defaults.SinkTokens, GroupSize = defaults.GroupSize,
                SlidingWindow = defaults.SlidingWindow, Eviction = defaults.Eviction,
            }
            : throw new CheckpointException($"expected one of the presets {string.Join(", ", Presets.Keys)}, but got '{name}'.", place);

    private static MustafarOptions Changed(MustafarOptions basis, JsonElement entry, string place)
    {
        MustafarOptions options = basis with
        {
            KeySparsity = entry.FindDouble("key_sparsity", place) ?? basis.KeySparsity,
            ValueSparsity = entry.FindDouble("value_sparsity", place) ?? basis.ValueSparsity,
            BalancedKeys = entry.FindBoolean("balanced_keys", place) ?? basis.BalancedKeys,
            BalancedValues = entry.FindBoolean("balanced_values", place) ?? basis.BalancedValues,
            KeySelection = Named("key_selection", KeySelection.Named) ?? basis.KeySelection,
            ValueSelection = Named("value_selection", ValueSelection.Named) ?? basis.ValueSelection,
            KeyBits = entry.FindInt32("key_bits", place) ?? basis.KeyBits,
            ValueBits = entry.FindInt32("value_bits", place) ?? basis.ValueBits,
            KeyRotation = entry.FindBoolean("key_rotation", place) ?? basis.KeyRotation,
            LocalWindow = entry.FindInt32("local_window", place) ?? basis.LocalWindow,
            SinkTokens = entry.FindInt32("sinks", place) ?? basis.SinkTokens,
            GroupSize = entry.FindInt32("group_size", place) ?? basis.GroupSize,
            KeptMultiple = entry.FindInt32("kept_multiple", place) ?? basis.KeptMultiple,
            SlidingWindow = entry.FindInt32("sliding_window", place) ?? basis.SlidingWindow,
            Eviction = EvictionSetting.Read(entry, basis.Eviction, place),
        };
        options = entry.FindBoolean("key_channel_scales", place) is bool scales ? options with { KeyChannelScales = scales } : options;
        return SimulationSetting.Apply(options, entry, place);

        T? Named<T>(string key, Func<string, T> find)
            where T : ChannelSelection
        {
            try
            {
                return entry.FindString(key, place) is string selection ? find(selection) : null;
            }
            catch (ArgumentException exception)
            {
                string message = exception.Message.Split(" (Parameter ")[0];
                throw new CheckpointException($"'{key}': {char.ToLowerInvariant(message[0])}{message[1..]}", place);
            }
        }
    }

    // Errors about the options' values are reported with the setting's keys.
    private static MustafarOptions Checked(Func<MustafarOptions> make, string place)
    {
        try
        {
            MustafarOptions options = make();
            options.Eviction?.Check(options);
            return options switch
            {
                { KeyChannelScales: true, KeyBits: 16 } =>
                    throw new CheckpointException("'key_channel_scales': expected false with 'key_bits' 16, since only integers have scales.", place),
                { KeyRotation: true, KeyBits: 16 } =>
                    throw new CheckpointException("'key_rotation': expected false with 'key_bits' 16, since it is for integers.", place),
                { KeySelection.Rewrites: true } and ({ KeySparsity: > 0 } or { KeyBits: < 16 }) =>
                    throw new CheckpointException("'key_simulation': expected no 'key_sparsity' and 'key_bits' beside it, which its format says.", place),
                { ValueSelection.Rewrites: true } and ({ ValueSparsity: > 0 } or { ValueBits: < 16 }) =>
                    throw new CheckpointException("'value_simulation': expected no 'value_sparsity' and 'value_bits' beside it, which its format says.", place),
                { KeyRotation: true, KeySparsity: > 0 } =>
                    throw new CheckpointException("'key_rotation': expected false unless 'key_sparsity' is 0, since it levels what pruning lives off.", place),
                _ => options,
            };
        }
        catch (ArgumentException exception) when (exception is not ArgumentOutOfRangeException)
        {
            throw new CheckpointException($"'eviction': {exception.Message.Split(" (Parameter ")[0]}", place);
        }
        catch (ArgumentOutOfRangeException exception)
        {
            string key = s_keys.FirstOrDefault(known => known.Property == exception.ParamName).Key ?? exception.ParamName!;
            string message = exception.Message.Split(" (Parameter ")[0].TrimEnd('.');
            throw new CheckpointException(
                string.Create(CultureInfo.InvariantCulture, $"'{key}': {char.ToLowerInvariant(message[0])}{message[1..]}, but got {exception.ActualValue}."),
                place);
        }
    }
}
