using System.Runtime.CompilerServices;
using Microsoft.Extensions.AI;
using Mustafar.Examples.Llama.Chat;
using Mustafar.Examples.Llama.Checkpoint;
using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;

namespace Mustafar.Examples.Llama;

/// <summary>A local model of the Llama family as an <see cref="IChatClient"/>, on pruned and compressed caches.</summary>
/// <remarks>
/// <para>
/// A request whose messages begin as a former one's, its reply included, goes on with that one's cache: only the new messages are read.
/// </para>
/// <para>
/// Temperature, top-p, top-k, penalties, seed, stop sequences, longest reply and instructions are served; without a temperature the
/// likeliest token is taken. Tools, formats of response and options of reasoning are refused. It can be used by several threads; requests
/// wait for one another.
/// </para>
/// </remarks>
public sealed class LlamaChatClient : IChatClient
{
    private readonly ChatModel _model;
    private readonly LlamaChatClientOptions _options;
    private readonly ChatClientMetadata _metadata;
    private readonly SemaphoreSlim _turn = new(1);

    // The latest used last.
    private readonly List<Conversation> _conversations = [];
    private volatile bool _disposed;

    private LlamaChatClient(ChatModel model, LlamaChatClientOptions options)
    {
        _model = model;
        _options = options;
        string modelId = Path.GetFileName(Path.TrimEndingDirectorySeparator(model.Language.Directory));
        _metadata = new ChatClientMetadata("mustafar", defaultModelId: modelId);
    }

    private string ModelId => _metadata.DefaultModelId!;

    /// <summary>Loads a checkpoint.</summary>
    /// <param name="directory">A Hugging Face checkpoint: config.json, safetensors, tokenizer.json or tokenizer.model.</param>
    /// <param name="options">How to run it; the defaults if null.</param>
    /// <exception cref="IOException">A file is missing or damaged.</exception>
    /// <exception cref="UnsupportedModelException">The checkpoint asks for something that is not implemented, or has no known chat
    /// template.</exception>
    public static LlamaChatClient Load(string directory, LlamaChatClientOptions? options = null)
    {
        options ??= new LlamaChatClientOptions();
        LanguageModel language = LanguageModel.Load(directory, options.DType, options.Device);
        try
        {
            return new LlamaChatClient(ChatModel.Of(language, options.ChatTemplate), options);
        }
        catch
        {
            language.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public Task<ChatResponse> GetResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default) =>
        GetStreamingResponseAsync(messages, options, cancellationToken).ToChatResponseAsync(cancellationToken);

    /// <inheritdoc/>
    /// <exception cref="NotSupportedException">A message or an option needs what the model can't do.</exception>
    /// <exception cref="ArgumentException">The messages are not in an order that the chat template has, or don't fit into the
    /// model.</exception>
    public IAsyncEnumerable<ChatResponseUpdate> GetStreamingResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(messages);
        ObjectDisposedException.ThrowIf(_disposed, this);
        return Stream(ChatRequest.Read(messages, options, ModelId, _options.MaxOutputTokens), cancellationToken);
    }

    /// <inheritdoc/>
    public object? GetService(Type serviceType, object? serviceKey = null)
    {
        ArgumentNullException.ThrowIfNull(serviceType);
        return serviceKey is not null ? null
            : serviceType == typeof(ChatClientMetadata) ? _metadata
            : serviceType.IsInstanceOfType(this) ? this
            : serviceType.IsInstanceOfType(_model.Language) ? _model.Language
            : null;
    }

    /// <summary>Frees the model and the caches. A request in progress goes on to its end, and they are freed then.</summary>
    public void Dispose()
    {
        _disposed = true;
        FreeIfDisposed();
    }

    // Whoever disposes may be the one who reads a reply, so nobody is waited for: the last to be done frees.
    private void FreeIfDisposed()
    {
        if (_disposed && _turn.Wait(0))
        {
            _conversations.ForEach(conversation => conversation.Dispose());
            _conversations.Clear();
            _model.Language.Dispose();
            _turn.Release();
        }
    }

    private async IAsyncEnumerable<ChatResponseUpdate> Stream(
        ChatRequest request, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        string id = Guid.NewGuid().ToString("N");
        await _turn.WaitAsync(cancellationToken).ConfigureAwait(false);
        try
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            Conversation conversation = ConversationFor(request.Turns);
            ChatTurn[] newTurns = [.. request.Turns.Skip(conversation.Turns.Count)];
            using IEnumerator<string> parts = conversation
                .Reply(newTurns, new Sampler(request.Sampling), request.MaxTokens, request.StopSequences, cancellationToken)
                .GetEnumerator();

            // The model works on another thread, so that the caller's stays free.
            while (await Task.Run(parts.MoveNext, cancellationToken).ConfigureAwait(false))
            {
                yield return Update(new TextContent(parts.Current));
            }

            ReplyUsage usage = conversation.LastUsage;
            ChatResponseUpdate last = Update(new UsageContent(new UsageDetails
            {
                InputTokenCount = usage.CachedTokens + usage.NewTokens,
                CachedInputTokenCount = usage.CachedTokens,
                OutputTokenCount = usage.ReplyTokens,
                TotalTokenCount = usage.CachedTokens + usage.NewTokens + usage.ReplyTokens,
            }));
            last.FinishReason = usage.End == ReplyEnd.Stop ? ChatFinishReason.Stop : ChatFinishReason.Length;
            yield return last;
        }
        finally
        {
            _turn.Release();
            FreeIfDisposed();
        }

        ChatResponseUpdate Update(AIContent content) => new(ChatRole.Assistant, [content])
        {
            CreatedAt = DateTimeOffset.UtcNow,
            MessageId = id,
            ModelId = ModelId,
            ResponseId = id,
        };
    }

    private ModelCache NewCache() => _options.Cache is MustafarOptions options
        ? ModelCache.Mustafar(_model.Language.Model, options)
        : ModelCache.Dense(_model.Language.Model);

    // The one whose cache serves most of the turns; else a new one, or the one that was not used for longest.
    private Conversation ConversationFor(IReadOnlyList<ChatTurn> turns)
    {
        Conversation? conversation = _conversations
            .Where(candidate => candidate.Turns.Count > 0 && candidate.IsBeginningOf(turns))
            .MaxBy(candidate => candidate.Turns.Count);
        if (conversation is null && _conversations.Count >= _options.MaxConversations)
        {
            conversation = _conversations[0];
            conversation.Reset();
        }

        if (conversation is not null)
        {
            _conversations.Remove(conversation);
        }

        conversation ??= new Conversation(_model, NewCache());
        _conversations.Add(conversation);
        return conversation;
    }
}
