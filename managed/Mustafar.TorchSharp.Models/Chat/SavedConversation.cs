using System.Text.Json;
using System.Text.Json.Serialization;

namespace Mustafar.Models.Chat;

/// <summary>The part of a saved chat that is not in the cache.</summary>
/// <param name="Turns">The turns.</param>
/// <param name="Tokens">Ids of the tokens that the cache holds.</param>
internal sealed record SavedConversation(IReadOnlyList<ChatTurn> Turns, IReadOnlyList<int> Tokens)
{
    private const string Key = "chat";

    /// <summary>The chat as metadata of a file.</summary>
    public Dictionary<string, string> ToMetadata() => new() { [Key] = JsonSerializer.Serialize(this, SavedConversationJson.Default.SavedConversation) };

    /// <summary>The chat in a file's metadata.</summary>
    /// <param name="metadata">The metadata.</param>
    /// <param name="path">The file.</param>
    /// <param name="vocabSize">Ids are below this.</param>
    /// <param name="cachedTokens">Tokens in the file's cache.</param>
    /// <exception cref="MustafarCacheFileException">They hold no chat, or one that doesn't fit.</exception>
    public static SavedConversation FromMetadata(IReadOnlyDictionary<string, string> metadata, string path, int vocabSize, int cachedTokens)
    {
        if (!metadata.TryGetValue(Key, out string? json))
        {
            throw new MustafarCacheFileException("expected a saved chat, but the file holds another kind of text.", path);
        }

        SavedConversation saved;
        try
        {
            saved = JsonSerializer.Deserialize(json, SavedConversationJson.Default.SavedConversation) ?? throw new JsonException("it is null.");
        }
        catch (JsonException exception)
        {
            throw new MustafarCacheFileException($"expected a chat in the metadata, but {exception.Message}", path, exception);
        }

        if (saved.Tokens.Count != cachedTokens || saved.Tokens.Any(id => id < 0 || id >= vocabSize))
        {
            throw new MustafarCacheFileException(
                $"expected the ids of {cachedTokens} cached tokens, from 0 to {vocabSize - 1}, but got other values ({saved.Tokens.Count} of them).", path);
        }

        return !saved.Turns.Contains(null)
            ? saved
            : throw new MustafarCacheFileException("expected turns with a role and content, but one is null.", path);
    }
}

// Made by the compiler, so that it needs no reflection.
[JsonSourceGenerationOptions(JsonSerializerDefaults.Web, RespectNullableAnnotations = true, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(SavedConversation))]
internal sealed partial class SavedConversationJson : JsonSerializerContext;
