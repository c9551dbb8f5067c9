using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Evaluation;

/// <summary>A directory of results: a JSON file for each finished unit, and a file with a line per part for each unit in
/// progress.</summary>
/// <remarks>
/// File names contain a hash of everything that a result depends on. If any of it changes, no file matches and the unit is measured again;
/// earlier results stay. A unit's file is written completely or not at all. An incomplete last line of a file of parts is cut off.
/// </remarks>
internal sealed class EvaluationStore
{
    private const string PartsSuffix = ".parts.jsonl";

    private static readonly JsonSerializerOptions s_indented = new() { WriteIndented = true };

    private readonly string _directory;

    /// <summary>Opens a directory, and creates it if it does not exist.</summary>
    /// <exception cref="IOException">The directory can't be created or written to.</exception>
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
            // The file was edited: measure the unit again.
            return null;
        }
    }

    /// <summary>Saves a finished unit, and deletes its parts, which are no longer needed.</summary>
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
