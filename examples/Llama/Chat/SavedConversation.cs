using System.Text.Json;
using System.Text.Json.Serialization;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>What a file keeps of a chat beside the caches.</summary>
/// <param name="Template">How the chat is written down.</param>
/// <param name="Turns">What was said.</param>
/// <param name="Uncached">Ids of the last reply that the caches don't hold yet.</param>
/// <param name="CacheIsOff">Whether the caches hold something else, so that all turns are to be read anew.</param>
internal sealed record SavedConversation(string Template, IReadOnlyList<ChatTurn> Turns, IReadOnlyList<int> Uncached, bool CacheIsOff)
{
    private const string Key = "chat";

    private static readonly JsonSerializerOptions s_json = new(JsonSerializerDefaults.Web)
    {
        RespectNullableAnnotations = true,
        RespectRequiredConstructorParameters = true,
        Converters = { new JsonStringEnumConverter(JsonNamingPolicy.CamelCase, allowIntegerValues: false) },
    };

    /// <summary>The chat as metadata of a file.</summary>
    public Dictionary<string, string> ToMetadata() => new() { [Key] = JsonSerializer.Serialize(this, s_json) };

    /// <summary>The chat that a file's metadata hold.</summary>
    /// <param name="metadata">The metadata.</param>
    /// <param name="path">The file.</param>
    /// <param name="model">The model that is to go on with it.</param>
    /// <param name="cachedTokens">Tokens in the file's caches.</param>
    /// <exception cref="MustafarCacheFileException">They hold none, or one that doesn't fit the model.</exception>
    public static SavedConversation FromMetadata(IReadOnlyDictionary<string, string> metadata, string path, ChatModel model, int cachedTokens)
    {
        if (!metadata.TryGetValue(Key, out string? json))
        {
            throw new MustafarCacheFileException("expected a saved chat, but the file holds caches of another text.", path);
        }

        SavedConversation saved;
        try
        {
            saved = JsonSerializer.Deserialize<SavedConversation>(json, s_json) ?? throw new JsonException("it is null.");
        }
        catch (JsonException exception)
        {
            throw new MustafarCacheFileException($"expected a chat in the metadata, but {exception.Message}", path, exception);
        }

        int vocabSize = model.Language.Model.Config.VocabSize;
        if (saved.Template != model.Template.Name)
        {
            throw new MustafarCacheFileException(
                $"expected a chat of the template '{model.Template.Name}', but it was written down with '{saved.Template}'.", path);
        }

        if (saved.Uncached.Any(id => id < 0 || id >= vocabSize))
        {
            throw new MustafarCacheFileException($"expected ids from 0 to {vocabSize - 1} at the chat's end.", path);
        }

        bool isCached = cachedTokens > 0 || saved.CacheIsOff;
        if (isCached != (saved.Turns is [.., { Speaker: ChatSpeaker.Assistant }]) || saved.Turns.Contains(null))
        {
            throw new MustafarCacheFileException(
                $"expected turns that end with a reply for {cachedTokens} cached tokens, but got {saved.Turns.Count}.", path);
        }

        return saved;
    }
}
