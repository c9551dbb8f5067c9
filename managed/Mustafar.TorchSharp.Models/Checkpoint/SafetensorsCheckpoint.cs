using System.Text.Json;
using Mustafar.Storage;

namespace Mustafar.Models.Checkpoint;

/// <summary>The weights of a Hugging Face checkpoint: one safetensors file, or several with an index.</summary>
public sealed class SafetensorsCheckpoint : IDisposable
{
    private const string SingleFile = "model.safetensors";
    private const string IndexFile = "model.safetensors.index.json";

    private readonly List<SafetensorsFile> _files = [];
    private readonly Dictionary<string, SafetensorsFile> _fileOf = [];

    private SafetensorsCheckpoint(string directory) => Directory = directory;

    /// <summary>Directory of the files.</summary>
    public string Directory { get; }

    /// <summary>Names of all tensors.</summary>
    public IReadOnlyCollection<string> Names => _fileOf.Keys;

    /// <summary>Opens the weights in a directory and checks that all files and tensors are there.</summary>
    /// <param name="directory">The directory with model.safetensors, or with model.safetensors.index.json and its shards.</param>
    /// <exception cref="DirectoryNotFoundException">There is no such directory.</exception>
    /// <exception cref="FileNotFoundException">The weights, or one of the shards, are missing.</exception>
    /// <exception cref="CheckpointException">A file is damaged, or a tensor is missing from its shard.</exception>
    public static SafetensorsCheckpoint Open(string directory)
    {
        if (!System.IO.Directory.Exists(directory))
        {
            throw new DirectoryNotFoundException($"{directory}: the directory doesn't exist.");
        }

        SafetensorsCheckpoint checkpoint = new(directory);
        try
        {
            string single = Path.Combine(directory, SingleFile);
            string index = Path.Combine(directory, IndexFile);
            if (Path.Exists(single))
            {
                checkpoint.AddFile(single);
            }
            else if (Path.Exists(index))
            {
                checkpoint.AddShards(index);
            }
            else
            {
                throw new FileNotFoundException($"{directory}: expected {SingleFile} or {IndexFile}, but {Instead(directory)}.", single);
            }

            return checkpoint;
        }
        catch
        {
            checkpoint.Dispose();
            throw;
        }
    }

    /// <summary>The file and the entry of a tensor, or null if there is no such tensor.</summary>
    public (SafetensorsFile File, SafetensorsEntry Entry)? Find(string name) =>
        _fileOf.TryGetValue(name, out SafetensorsFile? file) ? (file, file.Entries[name]) : null;

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (SafetensorsFile file in _files)
        {
            file.Dispose();
        }
    }

    private static string Instead(string directory)
    {
        string[] others = ["*.safetensors", "*.gguf", "pytorch_model*.bin", "*.pth", "*.pt"];
        string? other = others.SelectMany(pattern => System.IO.Directory.EnumerateFiles(directory, pattern)).Select(Path.GetFileName).FirstOrDefault();
        return Path.GetExtension(other) switch
        {
            null or "" => "neither exists",
            ".safetensors" => $"there is '{other}': name weights in a single file {SingleFile}; weights in several files need {IndexFile}",
            _ => $"there is '{other}', whose format is not supported; convert it to safetensors",
        };
    }

    private void AddFile(string path)
    {
        SafetensorsFile file = new(path);
        _files.Add(file);
        foreach (string name in file.Entries.Keys)
        {
            _fileOf.Add(name, file);
        }
    }

    private void AddShards(string index)
    {
        using JsonDocument document = JsonFile.Open(index);
        JsonElement map = document.RootElement.Require("weight_map", JsonValueKind.Object, index);
        Dictionary<string, SafetensorsFile> shards = [];
        foreach (JsonProperty weight in map.EnumerateObject())
        {
            string shardName = weight.Value.ValueKind == JsonValueKind.String
                ? weight.Value.GetString()!
                : throw new CheckpointException($"expected the name of a shard, but got {weight.Value.Quote()}.", index, weight.Name);
            if (!shards.TryGetValue(shardName, out SafetensorsFile? shard))
            {
                shard = OpenShard(index, shardName);
                shards.Add(shardName, shard);
            }

            if (!shard.Entries.ContainsKey(weight.Name))
            {
                throw new CheckpointException($"{IndexFile} puts it in this shard, but it is not there.", shard.Path, weight.Name);
            }

            if (!_fileOf.TryAdd(weight.Name, shard))
            {
                throw new CheckpointException("expected each name once, but this one occurs twice.", index, weight.Name);
            }
        }
    }

    private SafetensorsFile OpenShard(string index, string name)
    {
        if (name.Length == 0 || name != Path.GetFileName(name))
        {
            throw new CheckpointException($"expected the name of a file in the same directory as shard, but got '{name}'.", index);
        }

        string path = Path.Combine(Directory, name);
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"{path}: {IndexFile} names this shard, but it doesn't exist.", path);
        }

        SafetensorsFile file = new(path);
        _files.Add(file);
        return file;
    }
}
