using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Evaluation;

/// <summary>A task measured for a setting.</summary>
/// <param name="Task">The task.</param>
/// <param name="Setting">The setting.</param>
/// <param name="Result">The measurements.</param>
/// <param name="Seconds">How long it took, in seconds.</param>
public sealed record EvaluationUnit(EvaluationTask Task, CacheSetting Setting, TaskResult Result, double Seconds)
{
    private const int Format = 1;

    /// <summary>The value of a metric; NaN if there is none.</summary>
    public double Value(string key) => Result.Metrics.TryGetValue(key, out double value) ? value : double.NaN;

    /// <summary>Everything that a result depends on.</summary>
    internal static JsonObject Identity(EvaluationTask task, CacheSetting setting) => new()
    {
        ["format"] = Format,
        ["model"] = task.Language.Fingerprint,
        ["device"] = task.Language.Model.Device.type.ToString(),
        ["dtype"] = task.Language.Model.DType.ToString(),
        ["setting"] = setting.ToJson(),
        ["task"] = task.Name,
        ["inputs"] = task.Inputs,
    };

    /// <summary>A file name, without extension, that no other identity has.</summary>
    internal static string FileStem(EvaluationTask task, CacheSetting setting)
    {
        string hash = Convert.ToHexString(SHA256.HashData(Encoding.UTF8.GetBytes(Identity(task, setting).ToJsonString())));
        string name = string.Concat(setting.Name.Select(c => char.IsAsciiLetterOrDigit(c) || c is '-' or '.' ? c : '_'));
        return $"{task.Name}.{name[..Math.Min(name.Length, 40)]}.{hash[..16]}";
    }

    /// <summary>The unit as it is stored in its file.</summary>
    internal JsonObject ToJson() => new()
    {
        ["identity"] = Identity(Task, Setting),
        ["seconds"] = Math.Round(Seconds, 1),
        ["metrics"] = new JsonObject(Result.Metrics.Select(item => KeyValuePair.Create(item.Key, JsonNumber.Of(item.Value)))),
        ["details"] = Result.Details?.DeepClone(),
    };

    /// <summary>Reads what <see cref="ToJson"/> wrote; returns null if it has another identity or is not a unit.</summary>
    internal static EvaluationUnit? FromJson(JsonNode? json, EvaluationTask task, CacheSetting setting)
    {
        if (json is not JsonObject root
            || !JsonNode.DeepEquals(root["identity"], JsonNode.Parse(Identity(task, setting).ToJsonString()))
            || root["metrics"] is not JsonObject metrics
            || root["seconds"] is not JsonValue seconds)
        {
            return null;
        }

        TaskResult result = new(metrics.ToDictionary(item => item.Key, item => JsonNumber.Read(item.Value)), root["details"]?.DeepClone());
        return new EvaluationUnit(task, setting, result, (double)seconds);
    }

    /// <summary>The value of a metric as text.</summary>
    internal string Describe(Metric metric)
    {
        double value = Value(metric.Key);
        return double.IsNaN(value) ? "–" : value.ToString(metric.Format, CultureInfo.InvariantCulture);
    }
}
