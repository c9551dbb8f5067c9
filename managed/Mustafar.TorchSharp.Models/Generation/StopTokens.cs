using Mustafar.Models.Checkpoint;
using Mustafar.Models.Llama;

namespace Mustafar.Models.Generation;

/// <summary>Tokens that end a text.</summary>
public static class StopTokens
{
    /// <summary>Reads them from a checkpoint: those of generation_config.json or, if it names none, of config.json.</summary>
    /// <param name="directory">The checkpoint.</param>
    /// <param name="config">Its config.json.</param>
    /// <exception cref="CheckpointException">generation_config.json is not valid.</exception>
    public static IReadOnlySet<int> Load(string directory, LlamaConfig config)
    {
        ArgumentNullException.ThrowIfNull(config);
        IReadOnlyList<int> ids = GenerationConfig.Load(directory).EosTokenIds;
        return (ids.Count > 0 ? ids : config.EosTokenIds).ToHashSet();
    }
}
