using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>Whether beginning and end tokens are added to a text, overriding the tokenizer's files.</summary>
/// <param name="AddsBeginning">Whether <c>bos_token</c> of tokenizer_config.json is put before a text; null for what the files say.</param>
/// <param name="AddsEnd">Whether its <c>eos_token</c> is put after a text; null for what the files say.</param>
public sealed record TextFrame(bool? AddsBeginning = null, bool? AddsEnd = null)
{
    /// <summary>The ids before a text.</summary>
    internal IReadOnlyList<int> Prefix(TextTokenizer tokenizer, IReadOnlyList<int> ids, string directory) =>
        Changed(AddsBeginning, "bos_token", tokenizer, ids, directory) is int id
            ? AddsBeginning == true ? [id, .. ids.Where(other => other != id)] : [.. ids.Where(other => other != id)]
            : ids;

    /// <summary>The ids after a text.</summary>
    internal IReadOnlyList<int> Suffix(TextTokenizer tokenizer, IReadOnlyList<int> ids, string directory) =>
        Changed(AddsEnd, "eos_token", tokenizer, ids, directory) is int id
            ? AddsEnd == true ? [.. ids.Where(other => other != id), id] : [.. ids.Where(other => other != id)]
            : ids;

    // The token to add or remove; null if nothing changes, or if there is none to remove.
    private static int? Changed(bool? adds, string key, TextTokenizer tokenizer, IReadOnlyList<int> ids, string directory)
    {
        if (adds is null || (adds == false && ids.Count == 0))
        {
            return null;
        }

        string path = Path.Combine(directory, "tokenizer_config.json");
        using JsonDocument? config = File.Exists(path) ? JsonFile.Open(path) : null;
        JsonElement? token = config?.RootElement.Find(key);
        string? text = token is { ValueKind: JsonValueKind.Object } ? token.Value.FindString("content", path)
            : config?.RootElement.FindString(key, path);
        return text is null ? throw new CheckpointException($"expected a '{key}', the token to add or omit, but there is none.", path)
            : tokenizer.FindAddedToken(text)
            ?? throw new CheckpointException($"expected the '{key}' '{text}' among the tokenizer's added tokens.", path);
    }
}
