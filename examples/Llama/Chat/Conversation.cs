using System.Text;
using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;
using Mustafar.Examples.Llama.Tokenizer;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>Why a reply ended.</summary>
public enum ReplyEnd
{
    /// <summary>The model, or a stop sequence, ended it.</summary>
    Stop,

    /// <summary>It has as many tokens as asked for, or the text as many as the model can take.</summary>
    Length,

    /// <summary>Whoever read it stopped.</summary>
    Interrupted,
}

/// <summary>What a reply took.</summary>
/// <param name="CachedTokens">Tokens that were in the cache before.</param>
/// <param name="NewTokens">Tokens that were read for it: the new turns, and the marks around them.</param>
/// <param name="ReplyTokens">Tokens generated, one that ended the reply included.</param>
/// <param name="End">Why it ended.</param>
public readonly record struct ReplyUsage(int CachedTokens, int NewTokens, int ReplyTokens, ReplyEnd End);

/// <summary>A chat over one cache: of each exchange only the new turns are read.</summary>
/// <remarks>It is used by one thread at a time. The cache is disposed with it.</remarks>
public sealed class Conversation : IDisposable
{
    private readonly ChatModel _model;
    private readonly ModelCache _cache;
    private readonly TokenGenerator _generator;
    private readonly HashSet<int> _stopTokens;
    private readonly List<ChatTurn> _turns = [];
    private List<int> _uncached = [];

    // The cache holds a stop sequence, which was not said, or a failure left its layers apart.
    private bool _cacheIsOff;

    /// <summary>Begins a chat.</summary>
    /// <param name="model">Who replies.</param>
    /// <param name="cache">Its empty caches, of batch size 1.</param>
    /// <exception cref="ArgumentException">The caches are not empty, or of another batch size.</exception>
    public Conversation(ChatModel model, ModelCache cache)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(cache);
        if (cache.Length > 0)
        {
            throw new ArgumentException($"Expected empty caches, but they hold {cache.Length} tokens.", nameof(cache));
        }

        _model = model;
        _cache = cache;
        _generator = new TokenGenerator(model.Language.Model, cache);
        _stopTokens = [.. model.Language.StopTokens];
        if (model.Language.Tokenizer.FindAddedToken(model.Template.EndOfReply) is int end)
        {
            _stopTokens.Add(end);
        }
    }

    /// <summary>What was said so far.</summary>
    public IReadOnlyList<ChatTurn> Turns => _turns;

    /// <summary>Tokens in the cache.</summary>
    public int CachedTokens => _cache.Length;

    /// <summary>What the caches occupy.</summary>
    public KeyValueCacheMemory Memory => _cache.Memory;

    /// <summary>What the latest reply took.</summary>
    public ReplyUsage LastUsage { get; private set; }

    /// <summary>Goes on with a chat that was saved; nothing of it is read anew.</summary>
    /// <param name="path">The file.</param>
    /// <param name="model">Who replies: the model and the template that it was saved with.</param>
    /// <param name="cache">Its empty compressed caches, of batch size 1 and with the options that it was saved with.</param>
    /// <exception cref="ArgumentException">The caches are not empty.</exception>
    /// <exception cref="NotSupportedException">They are not compressed ones.</exception>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="MustafarCacheFileException">The file is of another model, template or options, damaged, or of no chat. The caches
    /// are empty then.</exception>
    public static Conversation Load(string path, ChatModel model, ModelCache cache)
    {
        Conversation conversation = new(model, cache);
        IReadOnlyDictionary<string, string> metadata = cache.Load(path, model.Language.Fingerprint);
        try
        {
            SavedConversation saved = SavedConversation.FromMetadata(metadata, path, model, cache.Length);
            conversation._turns.AddRange(saved.Turns);
            conversation._uncached = [.. saved.Uncached];
            conversation._cacheIsOff = saved.CacheIsOff;
            return conversation;
        }
        catch
        {
            cache.Clear();
            throw;
        }
    }

    /// <summary>Writes the chat and its caches to a file, from which <see cref="Load"/> goes on.</summary>
    /// <param name="path">The file; one that is there is replaced once the new one is complete.</param>
    /// <exception cref="NotSupportedException">The caches are not compressed ones.</exception>
    /// <exception cref="IOException">The file can't be written; one that was there before is as it was.</exception>
    public void Save(string path)
    {
        if (_cacheIsOff)
        {
            // What the next reply would do first.
            _cache.Clear();
        }

        SavedConversation saved = new(_model.Template.Name, _turns, _uncached, _cacheIsOff);
        _cache.Save(path, _model.Language.Fingerprint, saved.ToMetadata());
    }

    /// <summary>Whether turns are this chat and more, so that the cache can serve them.</summary>
    public bool IsBeginningOf(IReadOnlyList<ChatTurn> turns)
    {
        ArgumentNullException.ThrowIfNull(turns);
        return !_cacheIsOff && turns.Count > _turns.Count && _turns.SequenceEqual(turns.Take(_turns.Count));
    }

    /// <summary>Forgets all turns.</summary>
    public void Reset()
    {
        _cache.Clear();
        _turns.Clear();
        _uncached = [];
        _cacheIsOff = false;
    }

    /// <summary>Adds turns to the chat, and the model's reply.</summary>
    /// <param name="newTurns">What was said since the latest reply; the last turn is the user's.</param>
    /// <param name="sampler">Chooses tokens.</param>
    /// <param name="maxTokens">Tokens to generate at most.</param>
    /// <param name="stopSequences">Texts that end the reply and are left out of it; none if null.</param>
    /// <param name="cancellationToken">Stops before the next token: what was said until then stays said, as when reading stops. Before the
    /// first it stops within the new turns, which are not said then.</param>
    /// <returns>The parts of the reply, each as soon as it is known. They are generated as they are read.</returns>
    /// <exception cref="ArgumentException">The turns are not in an order that the template has, or don't fit into the model.</exception>
    public IEnumerable<string> Reply(
        IReadOnlyList<ChatTurn> newTurns,
        Sampler sampler,
        int maxTokens,
        IReadOnlyList<string>? stopSequences = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(newTurns);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxTokens);
        if (stopSequences?.Any(string.IsNullOrEmpty) ?? false)
        {
            throw new ArgumentException("Expected stop sequences that are not empty.", nameof(stopSequences));
        }

        if (_cacheIsOff)
        {
            List<ChatTurn> said = [.. _turns];
            Reset();
            newTurns = [.. said, .. newTurns];
        }

        List<int> prompt = [.. _uncached, .. _model.Template.Encode(_model.Language.Tokenizer, [.. _turns, .. newTurns], _turns.Count)];
        IEnumerable<int> tokens = _generator.Generate(prompt, sampler, maxTokens, _stopTokens, cancellationToken);
        return Stream(newTurns, prompt.Count, tokens, maxTokens, new StopSequences(stopSequences ?? []));
    }

    /// <inheritdoc/>
    public void Dispose() => _cache.Dispose();

    private IEnumerable<string> Stream(
        IReadOnlyList<ChatTurn> newTurns, int promptTokens, IEnumerable<int> tokens, int maxTokens, StopSequences stops)
    {
        int cachedBefore = _cache.Length;
        List<int> generated = [];
        StringBuilder reply = new();
        ReplyEnd end = ReplyEnd.Interrupted;
        try
        {
            IncrementalDetokenizer detokenizer = new(_model.Language.Tokenizer);
            foreach (int token in tokens)
            {
                generated.Add(token);
                bool isEnd = _stopTokens.Contains(token);
                string part = stops.Append(isEnd ? detokenizer.Finish() : detokenizer.Append(token));
                if (part.Length > 0)
                {
                    reply.Append(part);
                    yield return part;
                }

                if (isEnd || stops.IsFound)
                {
                    end = ReplyEnd.Stop;
                    break;
                }
            }

            end = end == ReplyEnd.Stop ? end : ReplyEnd.Length;
            string rest = (end == ReplyEnd.Length ? stops.Append(detokenizer.Finish()) : "") + stops.Finish();
            if (rest.Length > 0)
            {
                reply.Append(rest);
                yield return rest;
            }
        }
        finally
        {
            // Also where reading stopped in between, or generating failed.
            int cached = _cache.Length - cachedBefore;
            if (cached > 0 && generated.Count == 0)
            {
                // The turns were given up within the model's layers: nothing was said, and what was said before is to be read anew.
                _cache.Clear();
                _cacheIsOff = _turns.Count > 0;
            }
            else if (cached > 0)
            {
                List<int> uncached = generated[(cached - promptTokens)..];
                _uncached = uncached is [.., int last] && _stopTokens.Contains(last) ? uncached[..^1] : uncached;
                _cacheIsOff = stops.IsFound || _cache.Layers.Any(layer => layer.Length != _cache.Length);
                _turns.AddRange(newTurns);
                _turns.Add(new ChatTurn(ChatSpeaker.Assistant, reply.ToString()));
            }

            LastUsage = new ReplyUsage(cachedBefore, promptTokens, generated.Count, end);
        }
    }
}
