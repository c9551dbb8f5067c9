using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Evaluation;

/// <summary>The loss of a format that is used for one layer's keys, or values, alone.</summary>
/// <param name="Layer">The layer, from 0.</param>
/// <param name="IsKeys">Whether the format is one of keys.</param>
/// <param name="Format">The format in words.</param>
/// <param name="BytesRatio">Its bytes relative to dense fp16.</param>
/// <param name="Loss">Mean KL divergence from the dense model, in nats, minus the part that is rounding error.</param>
public sealed record FormatLoss(int Layer, bool IsKeys, string Format, double BytesRatio, double Loss);

/// <summary>The formats chosen for a layer.</summary>
/// <param name="Layer">The layer, from 0.</param>
/// <param name="Keys">The format of its keys in words.</param>
/// <param name="KeysLoss">The loss of that format alone, as in <see cref="FormatLoss.Loss"/>.</param>
/// <param name="Values">The format of its values in words.</param>
/// <param name="ValuesLoss">The loss of that format alone.</param>
/// <param name="BytesRatio">Bytes of keys and values relative to dense fp16.</param>
public sealed record LayerChoice(int Layer, string Keys, double KeysLoss, string Values, double ValuesLoss, double BytesRatio);

/// <summary>A setting measured as a whole.</summary>
/// <param name="Unit">The measurement: perplexity, KL divergence and the bytes in use.</param>
/// <param name="BytesRatio">Bytes of compressed tokens relative to dense fp16, without the recent window.</param>
/// <param name="EstimatedLoss">The sum of the losses of its formats alone, which should be close to its KL divergence; null for the dense
/// cache.</param>
public sealed record MeasuredSetting(EvaluationUnit Unit, double BytesRatio, double? EstimatedLoss);

/// <summary>A recommended cache setting, and the measurements behind it.</summary>
/// <param name="Budget">The budget that was given.</param>
/// <param name="Setting">The setting.</param>
/// <param name="Layers">The formats of each layer.</param>
/// <param name="OnSearchText">Measurements on the text that was searched on: the dense cache, the recommended setting and, if there is one
/// of no more bytes, the best setting with the same formats in all layers.</param>
/// <param name="OnCheckText">The same measurements on another text.</param>
/// <param name="Losses">The loss of each format alone, in each layer.</param>
public sealed record CacheRecommendation(
    RecommendationBudget Budget,
    CacheSetting Setting,
    IReadOnlyList<LayerChoice> Layers,
    IReadOnlyList<MeasuredSetting> OnSearchText,
    IReadOnlyList<MeasuredSetting> OnCheckText,
    IReadOnlyList<FormatLoss> Losses)
{
    /// <summary>Name of the file with the setting, which <see cref="CacheSettingReader.Load"/> reads.</summary>
    public const string SettingFile = "cache-settings.json";

    private static readonly JsonSerializerOptions s_indented = new() { WriteIndented = true };

    /// <summary>All numbers as JSON.</summary>
    public JsonObject ToJson()
    {
        EvaluationTask task = OnSearchText[0].Unit.Task;
        return new JsonObject
        {
            ["model"] = task.Language.Directory,
            ["fingerprint"] = task.Language.Fingerprint,
            ["device"] = task.Language.Model.Device.ToString(),
            ["dtype"] = task.Language.Model.DType.ToString(),
            ["budget"] = new JsonObject { ["bytes"] = Budget.Bytes, ["perplexity"] = Budget.Perplexity },
            ["setting"] = Setting.ToJson(),
            ["search"] = Text(OnSearchText),
            ["check"] = Text(OnCheckText),
            ["layers"] = new JsonArray([.. Layers.Select(layer => new JsonObject
            {
                ["layer"] = layer.Layer,
                ["keys"] = layer.Keys,
                ["keys_loss"] = layer.KeysLoss,
                ["values"] = layer.Values,
                ["values_loss"] = layer.ValuesLoss,
                ["bytes_ratio"] = layer.BytesRatio,
            })]),
            ["losses"] = new JsonArray([.. Losses.Select(loss => new JsonObject
            {
                ["layer"] = loss.Layer,
                ["operand"] = loss.IsKeys ? "keys" : "values",
                ["format"] = loss.Format,
                ["bytes_ratio"] = loss.BytesRatio,
                ["loss"] = loss.Loss,
            })]),
        };

        static JsonObject Text(IReadOnlyList<MeasuredSetting> measured) => new()
        {
            ["inputs"] = measured[0].Unit.Task.Inputs,
            ["settings"] = new JsonArray([.. measured.Select(one => new JsonObject
            {
                ["setting"] = one.Unit.Setting.ToJson(),
                ["compressed_bytes_ratio"] = one.BytesRatio,
                ["estimated_loss"] = one.EstimatedLoss,
                ["metrics"] = new JsonObject(one.Unit.Result.Metrics.Select(item => KeyValuePair.Create(item.Key, JsonNumber.Of(item.Value)))),
            })]),
        };
    }

    /// <summary>Tables of the measured settings, of the layers, and of the loss of each format.</summary>
    public string ToMarkdown()
    {
        StringBuilder text = new();
        EvaluationTask task = OnSearchText[0].Unit.Task;
        Line($"# Cache setting for {Path.GetFileName(Path.TrimEndingDirectorySeparator(task.Language.Directory))}\n");
        string budget = Budget.Bytes is double bytes
            ? string.Create(CultureInfo.InvariantCulture, $"Least loss within {bytes:P1} of the bytes of dense fp16.")
            : string.Create(CultureInfo.InvariantCulture, $"Fewest bytes with a perplexity of at most {Budget.Perplexity:F4} times that of the dense cache.");
        Line($"{budget} {task.Language.Model.DType} on {task.Language.Model.Device}.\n");
        Settings("Text that was searched on", OnSearchText);
        Settings("Text to check on", OnCheckText);
        Line($"Bytes are those of compressed tokens; bytes in use have the recent window too.\n");
        Line($"## Layers\n\n| layer | keys | loss of keys | values | loss of values | bytes of dense fp16 |\n| ---: | --- | ---: | --- | ---: | ---: |");
        foreach (LayerChoice layer in Layers)
        {
            Line($"| {layer.Layer} | {layer.Keys} | {layer.KeysLoss:F5} | {layer.Values} | {layer.ValuesLoss:F5} | {layer.BytesRatio:P1} |");
        }

        Line($"\nA loss is the mean KL divergence from the dense model, in nats, when nothing else is compressed.");
        Formats("Keys", Losses.Where(loss => loss.IsKeys));
        Formats("Values", Losses.Where(loss => !loss.IsKeys));
        return text.ToString();

        void Line(FormattableString line) => text.Append(line.ToString(CultureInfo.InvariantCulture)).Append('\n');

        void Settings(string title, IReadOnlyList<MeasuredSetting> measured)
        {
            Line($"## {title}\n\n| setting | bytes of dense fp16 | in use | perplexity | above dense | KL divergence, mean | estimated |");
            Line($"| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
            foreach (MeasuredSetting one in measured)
            {
                double above = one.Unit.Value("perplexity") / measured[0].Unit.Value("perplexity") - 1;
                string estimate = one.EstimatedLoss is double loss ? loss.ToString("F5", CultureInfo.InvariantCulture) : "";
                Line($"| {one.Unit.Setting.Name} | {one.BytesRatio:P1} | {one.Unit.Value("bytes_ratio"):P1} | {one.Unit.Value("perplexity"):F4} | {above:P2} | {one.Unit.Value("kl_mean"):F5} | {estimate} |");
            }

            Line($"");
        }

        void Formats(string title, IEnumerable<FormatLoss> losses)
        {
            ILookup<string, FormatLoss> byFormat = losses.ToLookup(loss => loss.Format);
            Line($"\n## {title}: loss in each layer\n\n| format | bytes of dense fp16 |{string.Concat(Layers.Select(layer => $" {layer.Layer} |"))}");
            Line($"| --- | ---: |{string.Concat(Layers.Select(_ => " ---: |"))}");
            foreach (IGrouping<string, FormatLoss> format in byFormat)
            {
                string numbers = string.Concat(format.OrderBy(loss => loss.Layer).Select(loss => string.Create(CultureInfo.InvariantCulture, $" {loss.Loss:F5} |")));
                Line($"| {format.Key} | {format.First().BytesRatio:P1} |{numbers}");
            }
        }
    }

    /// <summary>Writes <see cref="SettingFile"/>, recommendation.json and recommendation.md, and replaces existing files.</summary>
    /// <param name="directory">The directory, which must exist.</param>
    /// <exception cref="IOException">A file can't be written.</exception>
    public void Write(string directory)
    {
        ArgumentNullException.ThrowIfNull(directory);
        CacheSettingWriter.Save(Path.Combine(directory, SettingFile), [Setting]);
        AtomicFile.WriteText(Path.Combine(directory, "recommendation.json"), ToJson().ToJsonString(s_indented) + "\n");
        AtomicFile.WriteText(Path.Combine(directory, "recommendation.md"), ToMarkdown());
    }
}
