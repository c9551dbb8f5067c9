using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>Whether a text gets the token that begins it and the one that ends it, in place of what the tokenizer's files say.</summary>
/// <param name="AddsBeginning">Whether <c>bos_token</c> of tokenizer_config.json goes in front; null for what the files say.</param>
/// <param name="AddsEnd">Whether its <c>eos_token</c> goes behind; null for what the files say.</param>
public sealed record TextFrame(bool? AddsBeginning = null, bool? AddsEnd = null)
{
    /// <summary>What goes in front of a text.</summary>
    internal IReadOnlyList<int> Prefix(TextTokenizer tokenizer, IReadOnlyList<int> ids, string directory) =>
        Changed(AddsBeginning, "bos_token", tokenizer, ids, directory) is int id
            ? AddsBeginning == true ? [id, .. ids.Where(other => other != id)] : [.. ids.Where(other => other != id)]
            : ids;

    /// <summary>What goes behind a text.</summary>
    internal IReadOnlyList<int> Suffix(TextTokenizer tokenizer, IReadOnlyList<int> ids, string directory) =>
        Changed(AddsEnd, "eos_token", tokenizer, ids, directory) is int id
            ? AddsEnd == true ? [.. ids.Where(other => other != id), id] : [.. ids.Where(other => other != id)]
            : ids;

    // The token that is to be added or taken away; null if nothing is, or if there is none to take away.
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
