namespace Mustafar.Models.Checkpoint;

/// <summary>Checks the directory of a checkpoint, and identifies what was given in its place.</summary>
internal static class CheckpointDirectory
{
    private const string Config = "config.json";
    private const string Expected = $"expected a directory with {Config}, safetensors and a tokenizer, as on the Hugging Face Hub";

    /// <summary>Checks that a path is a directory with a config.json.</summary>
    /// <exception cref="DirectoryNotFoundException">The path does not exist.</exception>
    /// <exception cref="CheckpointException">It is something else; the message says what, and what to pass instead.</exception>
    public static void Check(string path)
    {
        if (File.Exists(path))
        {
            throw new CheckpointException(OfFile(path), path);
        }

        if (!Directory.Exists(path))
        {
            throw new DirectoryNotFoundException($"{path}: the directory doesn't exist{(IsHubName(path) ? HubHint(path) : "")}.");
        }

        if (!Path.Exists(Path.Combine(path, Config)))
        {
            throw new CheckpointException(OfDirectory(path), path);
        }
    }

    private static string OfFile(string path) => Path.GetExtension(path).ToLowerInvariant() switch
    {
        ".gguf" => $"this is a GGUF file, which is not supported; {Expected}.",
        ".safetensors" or ".json" => $"{Expected}, but this is one of its files; pass the directory, '{Path.GetDirectoryName(Path.GetFullPath(path))}'.",
        _ => $"{Expected}, but this is a file.",
    };

    private static string OfDirectory(string path)
    {
        // models--ORG--NAME/snapshots/COMMIT is where the hub's client keeps a checkpoint.
        string snapshots = Path.Combine(path, "snapshots");
        if (Directory.Exists(snapshots))
        {
            string? inside = Directory.EnumerateDirectories(snapshots).OrderByDescending(Directory.GetLastWriteTimeUtc)
                .FirstOrDefault(snapshot => Path.Exists(Path.Combine(snapshot, Config)));
            return "this is a folder of the Hugging Face cache; the checkpoints are below it"
                + (inside is null ? $", in '{snapshots}', but none there is complete." : $": pass '{inside}'.");
        }

        if (First(path, "*.gguf") is string gguf)
        {
            return $"'{gguf}' is a GGUF file, which is not supported; {Expected}.";
        }

        string? below = Directory.EnumerateDirectories(path).Order(StringComparer.Ordinal)
            .FirstOrDefault(directory => Path.Exists(Path.Combine(directory, Config)) || Directory.Exists(Path.Combine(directory, "snapshots")));
        return $"{Expected}, but there is no {Config}{(below is null ? "" : $"; there is a checkpoint in '{below}'")}.";
    }

    private static string? First(string directory, string pattern) =>
        Directory.EnumerateFiles(directory, pattern).Order(StringComparer.Ordinal).Select(Path.GetFileName).FirstOrDefault();

    private static bool IsHubName(string path) =>
        path.Split('/') is [{ Length: > 0 } organisation, { Length: > 0 }] && organisation[0] is not ('.' or '~') && !Directory.Exists(organisation);

    private static string HubHint(string name) =>
        $"; if this is a model on the Hugging Face Hub, download it first (hf download {name} --local-dir DIR) and pass DIR";
}
