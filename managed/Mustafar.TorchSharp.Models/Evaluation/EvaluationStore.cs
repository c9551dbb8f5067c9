using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Evaluation;

/// <summary>A directory of results: a JSON file for each finished unit, and a file of lines for each unit that is being measured.</summary>
/// <remarks>
/// File names carry a hash of all that a result depends on, so that a change of any of it finds no file and is measured anew, while
/// former results stay. A unit's file is written as a whole or not at all. Of a file of parts a last line that broke off is cut away.
/// </remarks>
internal sealed class EvaluationStore
{
    private const string PartsSuffix = ".parts.jsonl";

    private static readonly JsonSerializerOptions s_indented = new() { WriteIndented = true };

    private readonly string _directory;

    /// <summary>Opens a directory, which is made if there is none.</summary>
    /// <exception cref="IOException">It can't be made or written to.</exception>
    public EvaluationStore(string directory)
    {
        ArgumentException.ThrowIfNullOrEmpty(directory);
        _directory = Path.Combine(directory, "units");
        Directory.CreateDirectory(_directory);
        AtomicFile.Try(Path.Combine(_directory, "unit.json"));
    }

    /// <summary>A finished unit, or null if there is none.</summary>
    public EvaluationUnit? Find(EvaluationTask task, CacheSetting setting)
    {
        string path = FileOf(task, setting, ".json");
        if (!File.Exists(path))
        {
            return null;
        }

        try
        {
            return EvaluationUnit.FromJson(JsonNode.Parse(File.ReadAllBytes(path)), task, setting);
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException or FormatException)
        {
            // Somebody edited it: it is measured anew.
            return null;
        }
    }

    /// <summary>Keeps a finished unit; its parts are no longer needed.</summary>
    public void Save(EvaluationUnit unit)
    {
        AtomicFile.WriteText(FileOf(unit.Task, unit.Setting, ".json"), unit.ToJson().ToJsonString(s_indented) + "\n");
        File.Delete(FileOf(unit.Task, unit.Setting, PartsSuffix));
    }

    /// <summary>Opens the file of a unit's parts.</summary>
    /// <exception cref="IOException">Another process has it open.</exception>
    public EvaluationParts OpenParts(EvaluationTask task, CacheSetting setting) => EvaluationParts.Open(FileOf(task, setting, PartsSuffix));

    private string FileOf(EvaluationTask task, CacheSetting setting, string suffix) =>
        Path.Combine(_directory, EvaluationUnit.FileStem(task, setting) + suffix);
}
