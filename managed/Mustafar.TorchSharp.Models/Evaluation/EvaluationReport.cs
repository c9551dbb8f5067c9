using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Evaluation;

/// <summary>The results of an evaluation as JSON and as Markdown.</summary>
/// <param name="Units">The units.</param>
public sealed record EvaluationReport(IReadOnlyList<EvaluationUnit> Units)
{
    private static readonly JsonSerializerOptions s_indented = new() { WriteIndented = true };

    /// <summary>All metrics of all settings, without the details of single answers, which are in the units' files.</summary>
    public JsonObject ToJson()
    {
        EvaluationUnit first = Units[0];
        return new JsonObject
        {
            ["model"] = first.Task.Language.Directory,
            ["fingerprint"] = first.Task.Language.Fingerprint,
            ["device"] = first.Task.Language.Model.Device.ToString(),
            ["dtype"] = first.Task.Language.Model.DType.ToString(),
            ["settings"] = new JsonArray([.. Units.Select(unit => unit.Setting).Distinct().Select(setting => setting.ToJson())]),
            ["tasks"] = new JsonArray([.. TasksOf().Select(task => new JsonObject { ["name"] = task.Name, ["inputs"] = task.Inputs })]),
            ["results"] = new JsonArray([.. Units.Select(unit => new JsonObject
            {
                ["task"] = unit.Task.Name,
                ["setting"] = unit.Setting.Name,
                ["seconds"] = Math.Round(unit.Seconds, 1),
                ["metrics"] = new JsonObject(unit.Result.Metrics.Select(item => KeyValuePair.Create(item.Key, JsonNumber.Of(item.Value)))),
            })]),
        };
    }

    /// <summary>A table for each task, with a row for each setting.</summary>
    public string ToMarkdown()
    {
        StringBuilder text = new();
        EvaluationUnit first = Units[0];
        text.Append(CultureInfo.InvariantCulture, $"# Cache settings of {Path.GetFileName(Path.TrimEndingDirectorySeparator(first.Task.Language.Directory))}\n\n");
        text.Append(CultureInfo.InvariantCulture, $"{first.Task.Language.Model.DType} on {first.Task.Language.Model.Device}.\n");
        foreach (EvaluationTask task in TasksOf())
        {
            text.Append(CultureInfo.InvariantCulture, $"\n## {task.Name}\n\n");
            text.Append(CultureInfo.InvariantCulture, $"| setting | {string.Join(" | ", task.Metrics.Select(metric => metric.Title))} |\n");
            text.Append(CultureInfo.InvariantCulture, $"| --- |{string.Concat(task.Metrics.Select(_ => " ---: |"))}\n");
            foreach (EvaluationUnit unit in Units.Where(unit => unit.Task == task))
            {
                string name = unit.Setting.Name.Replace("|", "\\|", StringComparison.Ordinal) + (unit.Setting.IsSimulated ? " (simulated)" : "");
                text.Append(CultureInfo.InvariantCulture, $"| {name} | {string.Join(" | ", task.Metrics.Select(unit.Describe))} |\n");
            }
        }

        return text.ToString();
    }

    /// <summary>Writes results.json and results.md, and replaces existing files.</summary>
    /// <param name="directory">The directory.</param>
    /// <exception cref="IOException">A file can't be written.</exception>
    public void Write(string directory)
    {
        ArgumentNullException.ThrowIfNull(directory);
        AtomicFile.WriteText(Path.Combine(directory, "results.json"), ToJson().ToJsonString(s_indented) + "\n");
        AtomicFile.WriteText(Path.Combine(directory, "results.md"), ToMarkdown());
    }

    private IEnumerable<EvaluationTask> TasksOf() => Units.Select(unit => unit.Task).Distinct();
}
