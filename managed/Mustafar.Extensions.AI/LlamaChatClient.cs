using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Threading.Channels;
using Microsoft.Extensions.AI;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;
using Mustafar.Models.Chat;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Extensions.AI;

/// <summary>A local model of the Llama family as an <see cref="IChatClient"/>, on pruned and compressed caches.</summary>
/// <remarks>
/// <para>
/// Each request is rendered as a whole by the chat template. What a cache still holds from an earlier request, up to the first token that
/// differs, is not read again: see <see cref="LlamaChatClientOptions.PrefixCaching"/>. A refused request changes no cache.
/// </para>
/// <para>
/// Temperature, top-p, top-k, penalties, seed, stop sequences, maximum output tokens and instructions are supported. If a request gives no
/// temperature, top-p or top-k, those of the checkpoint's generation_config.json apply; without that file, or without its <c>do_sample</c>,
/// decoding is greedy. For a JSON response format, the user's last message asks for JSON and its schema; nothing enforces them. Variables
/// for the chat template, such as <c>enable_thinking</c>, are given as <c>AdditionalProperties["chat_template_kwargs"]</c>. Tools,
/// reasoning options and other additional properties are refused.
/// </para>
/// <para>
/// Several threads may use it. The model works on one request at a time, on its own thread. A reply is generated whether or not it is
/// read, until it ends, is cancelled, or its stream is disposed.
/// </para>
/// <para>
/// <see cref="LlamaChatClientOptions.LoggerFactory"/> takes a log; the meters of <see cref="GenerationMetrics"/> and
/// <see cref="MustafarMetrics"/> measure tokens and times.
/// </para>
/// </remarks>
/// <example>
/// <code>
/// LlamaChatClientOptions options = new() { Cache = MustafarPresets.HalfInFourBits };
/// using IChatClient client = LlamaChatClient.Load(directory, options);
/// ChatResponse response = await client.GetResponseAsync("Why is the sky blue?", new ChatOptions { MaxOutputTokens = 20 });
/// Console.WriteLine(response.Text);
/// </code>
/// </example>
public sealed class LlamaChatClient : IChatClient
{
    private readonly ChatModel _model;
    private readonly LlamaChatClientOptions _options;
    private readonly ChatClientMetadata _metadata;
    private readonly ChatRequestDefaults _defaults;
    private readonly SemaphoreSlim _turn = new(1);
    private readonly PromptCachePool _caches;
    private readonly ILogger _logger;
    private volatile bool _disposed;

    /// <summary>Takes over a loaded model.</summary>
    /// <param name="language">The model, with its tokenizer. It is disposed with the client; nothing else may use it meanwhile.</param>
    /// <param name="options">How to run it; the defaults if null. Data type and device are those of the model: the options must name
    /// none.</param>
    /// <exception cref="ArgumentException">The options name a data type or a device, or a chat template that does not exist.</exception>
    /// <exception cref="UnsupportedModelException">The checkpoint has no chat template, or one that can't be rendered.</exception>
    /// <exception cref="IOException">A file of the checkpoint is missing or damaged.</exception>
    /// <exception cref="InvalidOperationException">The model was loaded without its tokenizer.</exception>
    public LlamaChatClient(LanguageModel language, LlamaChatClientOptions? options = null)
        : this(ChatModelOf(language, options), options ?? new LlamaChatClientOptions())
    {
    }

    /// <summary>Takes over a loaded model with its template.</summary>
    /// <param name="model">The model that replies.</param>
    /// <param name="options">How to run it.</param>
    /// <param name="newCache">Makes an empty cache; one as in the options if null.</param>
    internal LlamaChatClient(ChatModel model, LlamaChatClientOptions options, Func<ModelCache>? newCache = null)
    {
        _model = model;
        _options = options;
        _logger = options.LoggerFactory?.CreateLogger<LlamaChatClient>() ?? (ILogger)NullLogger.Instance;
        newCache ??= () => options.Cache is MustafarOptions pruned
            ? ModelCache.Mustafar(model.Language.Model, pruned)
            : ModelCache.Dense(model.Language.Model);
        _caches = new PromptCachePool(
            () => new PromptCache(model.Language.Model, newCache()), options.PrefixCaching ? options.MaxConversations : 1);
        string name = Path.GetFileName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(model.Language.Directory)));
        _metadata = new ChatClientMetadata("mustafar", defaultModelId: name.Length > 0 ? name : null);
        _defaults = new ChatRequestDefaults(_metadata.DefaultModelId, model.Language.Sampling, options.MaxOutputTokens);
    }

    /// <summary>Loads a checkpoint.</summary>
    /// <param name="directory">A Hugging Face checkpoint: config.json, safetensors, tokenizer.json or tokenizer.model.</param>
    /// <param name="options">How to run it; the defaults if null.</param>
    /// <param name="progress">Receives the share of bytes loaded, 0 to 1.</param>
    /// <param name="cancellationToken">Cancels before the next tensor.</param>
    /// <exception cref="IOException">A file is missing or damaged.</exception>
    /// <exception cref="UnsupportedModelException">The checkpoint needs a feature that is not implemented, or has no chat template, or one
    /// that can't be rendered.</exception>
    /// <exception cref="ArgumentException">The chat template that the options name does not exist.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public static LlamaChatClient Load(
        string directory,
        LlamaChatClientOptions? options = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(directory);
        options ??= new LlamaChatClientOptions();
        long start = Stopwatch.GetTimestamp();
        CheckpointDirectory.Check(directory);
        ChatTemplate template = ChatTemplate.Load(directory, options.ChatTemplate);
        LanguageModel language = LanguageModel.Load(directory, options.DType, options.Device, progress, cancellationToken: cancellationToken);
        try
        {
            LlamaChatClient client = new(new ChatModel(language, template), options);
            client.LogLoaded(Stopwatch.GetElapsedTime(start));
            return client;
        }
        catch
        {
            language.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    /// <remarks>All exceptions are thrown by the task: see <see cref="GetStreamingResponseAsync"/>.</remarks>
    public Task<ChatResponse> GetResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default) =>
        GetStreamingResponseAsync(messages, options, cancellationToken).ToChatResponseAsync(cancellationToken);

    /// <inheritdoc/>
    /// <remarks>All exceptions are thrown while the stream is read.</remarks>
    /// <exception cref="NotSupportedException">A message or an option needs what the model can't do.</exception>
    /// <exception cref="ArgumentException">The chat template doesn't accept the messages, they don't fit into the model, or an option is out of
    /// range.</exception>
    /// <exception cref="UnsupportedModelException">The chat template can't be rendered for the messages.</exception>
    /// <exception cref="ObjectDisposedException">The client was disposed.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled. The model stops soon after: before its next layer.</exception>
    public async IAsyncEnumerable<ChatResponseUpdate> GetStreamingResponseAsync(
        IEnumerable<ChatMessage> messages,
        ChatOptions? options = null,
        [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(messages);
        ObjectDisposedException.ThrowIf(_disposed, this);
        ChatRequest request = ChatRequest.Read(messages, options, _defaults);
        Channel<ChatResponseUpdate> updates = Channel.CreateUnbounded<ChatResponseUpdate>();
        using CancellationTokenSource stop = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        CancellationToken stopped = stop.Token;
        _ = Task.Run(() => WriteAsync(request, updates.Writer, stopped), CancellationToken.None);
        try
        {
            await foreach (ChatResponseUpdate update in updates.Reader.ReadAllAsync(cancellationToken).ConfigureAwait(false))
            {
                cancellationToken.ThrowIfCancellationRequested();
                yield return update;
            }

            cancellationToken.ThrowIfCancellationRequested();
        }
        finally
        {
            // When the caller stops reading. The model is not waited for.
            await stop.CancelAsync().ConfigureAwait(false);
        }
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

    /// <summary>Frees the model and the caches. A request in progress continues to its end, and they are freed then.</summary>
    public void Dispose()
    {
        _disposed = true;
        FreeIfDisposed();
    }

    private static ChatModel ChatModelOf(LanguageModel language, LlamaChatClientOptions? options)
    {
        ArgumentNullException.ThrowIfNull(language);
        if (options?.DType is not null || options?.Device is not null)
        {
            throw new ArgumentException(
                $"Expected no data type and no device, since the model is loaded, but got {options.DType?.ToString() ?? "none"} and {options.Device?.ToString() ?? "none"}.", nameof(options));
        }

        return new ChatModel(language, ChatTemplate.Load(language.Directory, options?.ChatTemplate));
    }

    // The thread that disposes may be the one that reads a reply, so nothing is waited for: the last one to finish frees.
    private void FreeIfDisposed()
    {
        if (_disposed && _turn.Wait(0))
        {
            _caches.Dispose();
            _model.Language.Dispose();
            _turn.Release();
        }
    }

    private async Task WriteAsync(ChatRequest request, ChannelWriter<ChatResponseUpdate> updates, CancellationToken cancellationToken)
    {
        Exception? error = null;
        string id = Guid.NewGuid().ToString("N");
        try
        {
            // Before any cache is chosen, so that a refused request costs no other chat its cache.
            List<int> prompt = Encode(request, "messages", cancellationToken);
            await _turn.WaitAsync(cancellationToken).ConfigureAwait(false);
            try
            {
                ObjectDisposedException.ThrowIf(_disposed, this);
                Write(id, request, prompt, updates, cancellationToken);
            }
            finally
            {
                _turn.Release();
                FreeIfDisposed();
            }
        }
        catch (OperationCanceledException) when (cancellationToken.IsCancellationRequested)
        {
            // The caller knows from their own token.
            ChatClientLog.Cancelled(_logger, id);
        }
        catch (Exception exception) when (exception is ArgumentException or UnsupportedModelException or ObjectDisposedException)
        {
            error = exception;
            ChatClientLog.Refused(_logger, exception, id);
        }
        catch (Exception exception)
        {
            error = exception;
            ChatClientLog.Failed(_logger, exception, id);
        }

        updates.TryComplete(error);
    }

    // Errors name the caller's parameter.
    private List<int> Encode(ChatRequest request, string parameter, CancellationToken cancellationToken)
    {
        try
        {
            return _model.Encode(request.Turns, request.TemplateVariables, cancellationToken);
        }
        catch (ArgumentException exception)
        {
            throw new ArgumentException(exception.Message.Split(" (Parameter ")[0], parameter, exception);
        }
    }

    private void LogLoaded(TimeSpan time)
    {
        if (_logger.IsEnabled(LogLevel.Information))
        {
            LlamaForCausalLM model = _model.Language.Model;
            ChatClientLog.Loaded(
                _logger, _model.Language.Directory, time.TotalSeconds, model.DType.ToString(), model.Device.ToString(), _options.Cache is null ? "dense" : "compressed");
        }
    }

    private void Write(
        string id, ChatRequest request, List<int> prompt, ChannelWriter<ChatResponseUpdate> updates, CancellationToken cancellationToken)
    {
        ChatClientLog.Started(_logger, id, prompt.Count, request.MaxTokens);
        long start = Stopwatch.GetTimestamp();
        PromptCache cache = _caches.For(prompt);
        if (!_options.PrefixCaching)
        {
            cache.Clear();
        }

        Reply reply = new(_model, cache, prompt, request.StopSequences);
        foreach (string part in reply.Read(new Sampler(request.Sampling), request.MaxTokens, cancellationToken))
        {
            updates.TryWrite(Update(new TextContent(part)));
        }

        ReplyUsage usage = reply.Usage;
        if (_logger.IsEnabled(LogLevel.Information))
        {
            KeyValueCacheMemory memory = cache.Cache.Memory;
            ChatClientLog.Completed(
                _logger,
                id,
                usage.NewTokens,
                usage.CachedTokens,
                usage.ReplyTokens,
                Stopwatch.GetElapsedTime(start).TotalSeconds,
                usage.End,
                memory.TotalBytes,
                memory.UsedBytes);
        }

        ChatResponseUpdate last = Update(new UsageContent(new UsageDetails
        {
            InputTokenCount = prompt.Count,
            CachedInputTokenCount = usage.CachedTokens,
            OutputTokenCount = usage.ReplyTokens,
            TotalTokenCount = prompt.Count + usage.ReplyTokens,
        }));
        last.FinishReason = usage.End == ReplyEnd.Stop ? ChatFinishReason.Stop : ChatFinishReason.Length;
        updates.TryWrite(last);

        ChatResponseUpdate Update(AIContent content) => new(ChatRole.Assistant, [content])
        {
            CreatedAt = DateTimeOffset.UtcNow,
            MessageId = id,
            ModelId = _metadata.DefaultModelId,
            ResponseId = id,
        };
    }
}
