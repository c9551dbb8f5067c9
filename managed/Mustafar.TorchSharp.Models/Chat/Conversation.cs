using System.Text;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Models.Chat;

/// <summary>A chat over one cache: only what is new in each exchange is read.</summary>
/// <remarks>
/// For each reply the template renders the whole chat, which is read from the first token that differs from the cache. That may be within
/// the latest reply, if the template trims it or omits its reasoning. Only one thread at a time may use it. Disposing it disposes the
/// cache.
/// </remarks>
public sealed class Conversation : IDisposable
{
    private readonly ChatModel _model;
    private readonly PromptCache _cache;
    private readonly List<ChatTurn> _turns;

    /// <summary>Begins a chat.</summary>
    /// <param name="model">The model that replies.</param>
    /// <param name="cache">Its empty cache, of batch size 1.</param>
    /// <exception cref="ArgumentException">The cache is not empty, or has a different batch size.</exception>
    public Conversation(ChatModel model, ModelCache cache)
        : this(model, new PromptCache((model ?? throw new ArgumentNullException(nameof(model))).Language.Model, cache), [])
    {
    }

    private Conversation(ChatModel model, PromptCache cache, IReadOnlyList<ChatTurn> turns)
    {
        _model = model;
        _cache = cache;
        _turns = [.. turns];
    }

    /// <summary>Further variables for the template: see <see cref="ChatTemplate.Render"/>; none if null.</summary>
    public IReadOnlyDictionary<string, object?>? TemplateVariables { get; init; }

    /// <summary>The turns so far.</summary>
    public IReadOnlyList<ChatTurn> Turns => _turns;

    /// <summary>Number of tokens in the cache.</summary>
    public int CachedTokens => _cache.Ids.Count;

    /// <summary>The memory of the cache.</summary>
    public KeyValueCacheMemory Memory => _cache.Cache.Memory;

    /// <summary>The usage of the latest reply.</summary>
    public ReplyUsage LastUsage { get; private set; }

    /// <summary>Continues a saved chat.</summary>
    /// <param name="path">The file.</param>
    /// <param name="model">The model that it was saved with. With another template, more of it is read again.</param>
    /// <param name="cache">Its empty compressed cache, of batch size 1 and with the options that it was saved with.</param>
    /// <param name="templateVariables">See <see cref="TemplateVariables"/>.</param>
    /// <exception cref="ArgumentException">The cache is not empty.</exception>
    /// <exception cref="NotSupportedException">The cache is not a compressed one.</exception>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="MustafarCacheFileException">The file belongs to another model, has other options, is damaged, or holds no chat. The
    /// cache is empty then.</exception>
    public static Conversation Load(
        string path, ChatModel model, ModelCache cache, IReadOnlyDictionary<string, object?>? templateVariables = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(cache);
        IReadOnlyDictionary<string, string> metadata = cache.Load(path, model.Language.Fingerprint);
        try
        {
            SavedConversation saved = SavedConversation.FromMetadata(metadata, path, model.Language.Model.Config.VocabSize, cache.Length);
            return new Conversation(model, new PromptCache(model.Language.Model, cache, saved.Tokens), saved.Turns)
            {
                TemplateVariables = templateVariables,
            };
        }
        catch
        {
            cache.Clear();
            throw;
        }
    }

    /// <summary>Writes the chat and its cache to a file, from which <see cref="Load"/> continues.</summary>
    /// <param name="path">The file; an existing one is replaced once the new one is complete.</param>
    /// <exception cref="NotSupportedException">The cache is not a compressed one.</exception>
    /// <exception cref="IOException">The file can't be written; an existing one is unchanged.</exception>
    public void Save(string path) =>
        _cache.Cache.Save(path, _model.Language.Fingerprint, new SavedConversation(_turns, _cache.Ids).ToMetadata());

    /// <summary>Drops all turns.</summary>
    public void Reset()
    {
        _cache.Clear();
        _turns.Clear();
    }

    /// <summary>Adds turns to the chat, and the model's reply.</summary>
    /// <param name="newTurns">The turns since the latest reply.</param>
    /// <param name="sampler">Chooses tokens.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate.</param>
    /// <param name="stopSequences">Texts that end the reply and are not part of it; none if null.</param>
    /// <param name="cancellationToken">Cancels before the next token: the reply so far is kept, as when reading stops. Before the
    /// first token it cancels within the new turns, which are then not added.</param>
    /// <returns>The parts of the reply, each as soon as it is known. They are generated as they are read.</returns>
    /// <exception cref="ArgumentException">The template does not accept the turns, or they don't fit into the model.</exception>
    public IEnumerable<string> Reply(
        IReadOnlyList<ChatTurn> newTurns,
        Sampler sampler,
        int maxTokens,
        IReadOnlyList<string>? stopSequences = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(newTurns);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxTokens);
        if (newTurns.Count == 0)
        {
            throw new ArgumentException("Expected at least one turn to reply to.", nameof(newTurns));
        }

        StopSequences.Check(stopSequences, nameof(stopSequences));
        List<int> prompt = _model.Encode([.. _turns, .. newTurns], TemplateVariables, cancellationToken);
        return Stream(newTurns, new Reply(_model, _cache, prompt, stopSequences ?? []), sampler, maxTokens, cancellationToken);
    }

    /// <inheritdoc/>
    public void Dispose() => _cache.Dispose();

    private IEnumerable<string> Stream(
        IReadOnlyList<ChatTurn> newTurns, Reply reply, Sampler sampler, int maxTokens, CancellationToken cancellationToken)
    {
        StringBuilder text = new();
        try
        {
            foreach (string part in reply.Read(sampler, maxTokens, cancellationToken))
            {
                text.Append(part);
                yield return part;
            }
        }
        finally
        {
            LastUsage = reply.Usage;
            if (reply.Usage.ReplyTokens > 0)
            {
                _turns.AddRange(newTurns);
                _turns.Add(new ChatTurn(ChatRoles.Assistant, text.ToString()));
            }
        }
    }
}
