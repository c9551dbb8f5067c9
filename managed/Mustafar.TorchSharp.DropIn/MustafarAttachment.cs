using System.Diagnostics.CodeAnalysis;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// A model whose attention runs on compressed caches. Disposing it restores the model's own attention.
/// </summary>
/// <remarks>
/// <para>
/// The compressed caches of a conversation are freed by <see cref="Release"/> or <see cref="ReleaseAll"/>, with this object, when the
/// object that identifies the conversation is collected, or after the model's own cache was disposed. The latter two take effect when
/// another conversation begins, or when <see cref="Conversations"/> or <see cref="Memory"/> is read.
/// </para>
/// <para>
/// Any thread may use all members. If the model allows it, conversations may run on several threads, each of them on one at a time.
/// Calls of a model that keeps the cache of the current call in a field, like those of Microsoft.ML.GenAI, run one after another.
/// <see cref="Release"/>, <see cref="ReleaseAll"/> and <see cref="Dispose"/> wait for attention calls in progress. A
/// generation that continues afterwards with what was freed gets an <see cref="InvalidOperationException"/>.
/// </para>
/// </remarks>
public sealed class MustafarAttachment : IDisposable
{
    private readonly ReplacedModules _modules;
    private readonly ConversationList _conversations;
    private bool _disposed;

    // Calls of replaced modules are readers; freeing caches and exchanging modules are writers, which wait for the readers.
    private readonly ReaderWriterLockSlim _calls = new(LockRecursionPolicy.SupportsRecursion);

    [RequiresDynamicCode("Emits a subclass of the model's attention class.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    internal MustafarAttachment(
        nn.Module model, MustafarOptions options, bool linearInWeightDType, IReadOnlyList<AttentionAdapter> adapters)
    {
        ReplacementType.ThrowIfRuntimeEmitsNoCode();
        List<nn.Module> modules = ModuleTree.All(model);
        Options = ModelWindow.Taken(options, modules, adapters);
        Mask = new AttentionMask(Options.SlidingWindow);
        _conversations = new ConversationList(this);
        // A thread that runs the model meanwhile waits in the first replaced module that it reaches.
        _calls.EnterWriteLock();
        try
        {
            _modules = new ReplacedModules(model, modules, module => Replacement(module, linearInWeightDType, adapters));
        }
        catch
        {
            _disposed = true; // for who waits
            throw;
        }
        finally
        {
            _calls.ExitWriteLock();
        }

        Layers = _modules.Of<AttentionLayer>().Count();
        LinearLayers = _modules.Of<LinearLayer>().Count();
    }

    /// <summary>How keys and values are pruned and stored, with the model's sliding window if its configuration has one.</summary>
    public MustafarOptions Options { get; }

    /// <summary>Number of attention layers that were replaced.</summary>
    public int Layers { get; }

    /// <summary>Number of linear layers that run in the data type of their weights, including those with quantised weights.</summary>
    public int LinearLayers { get; }

    /// <summary>The conversations that hold tokens, the oldest first.</summary>
    public IReadOnlyList<MustafarConversation> Conversations => _conversations.Present;

    /// <summary>The memory of the compressed caches of all conversations.</summary>
    public KeyValueCacheMemory Memory =>
        KeyValueCacheMemory.Sum(Conversations.Select(conversation => conversation.Memory));

    internal AttentionMask Mask { get; }

    internal LayerPartition Partition { get; } = new();

    /// <summary>The conversation that an object identifies.</summary>
    /// <param name="conversation">The object: for most models their own cache; if each layer has its own cache (llm-sharp), any
    /// of them; for Torchsharp-llama the attention module.</param>
    /// <returns>The conversation, or null if it has no tokens here.</returns>
    public MustafarConversation? Find(object conversation)
    {
        ArgumentNullException.ThrowIfNull(conversation);
        return _conversations.Find(conversation) is { BatchSize: > 0 } found ? found : null;
    }

    /// <summary>Frees the compressed caches of one conversation. It cannot be continued, only started again.</summary>
    /// <param name="conversation">The object that identifies it, as in <see cref="Find"/>, or the conversation itself.</param>
    /// <returns>Whether it had caches here.</returns>
    /// <exception cref="InvalidOperationException">Called by an <see cref="AttentionAdapter"/> during an attention call.</exception>
    public bool Release(object conversation)
    {
        ArgumentNullException.ThrowIfNull(conversation);
        return (conversation as MustafarConversation ?? _conversations.Find(conversation))?.Release() ?? false;
    }

    /// <summary>Frees the compressed caches of all conversations. They cannot be continued, only started again.</summary>
    /// <exception cref="InvalidOperationException">Called by an <see cref="AttentionAdapter"/> during an attention call.</exception>
    public void ReleaseAll() => Alone(_conversations.FreeAll);

    /// <summary>
    /// Restores the model's own attention, the same objects in the same places, and frees all caches. Active conversations
    /// cannot be continued.
    /// </summary>
    /// <exception cref="InvalidOperationException">Called by an <see cref="AttentionAdapter"/> during an attention call.</exception>
    [UnconditionalSuppressMessage("Trimming", "IL2026", Justification = "The caller that made this object was warned.")]
    public void Dispose() => Alone(() =>
    {
        if (_disposed)
        {
            return;
        }

        // The caches first: from then on, the model's own attention fails on the remains of these conversations.
        _disposed = true;
        _conversations.FreeAll();
        _modules.PutBack();
    });

    /// <summary>Begins a call of a replaced module, which delays the freeing of caches and the restoring of modules.</summary>
    /// <returns>Whether modules are still replaced; if not, there is no call to end.</returns>
    internal bool TryEnter()
    {
        _calls.EnterReadLock();
        if (!_disposed)
        {
            return true;
        }

        _calls.ExitReadLock();
        return false;
    }

    /// <summary>Ends a call.</summary>
    internal void Leave() => _calls.ExitReadLock();

    /// <inheritdoc cref="ConversationList.Of"/>
    internal MustafarConversation ConversationOf(object key, AttentionLayer layer, bool perLayer, out bool joined) =>
        _conversations.Of(key, layer, perLayer, out joined);

    /// <inheritdoc cref="ConversationList.Begin(object)"/>
    internal MustafarConversation Begin(object key) => _conversations.Begin(key);

    /// <summary>Frees a conversation's caches.</summary>
    internal bool Free(MustafarConversation conversation)
    {
        bool released = false;
        Alone(() =>
        {
            released = conversation.BatchSize > 0;
            conversation.Free();
        });
        return released;
    }

    private ModuleReplacement? Replacement(
        nn.Module module, bool linearInWeightDType, IReadOnlyList<AttentionAdapter> adapters)
    {
        if (adapters.FirstOrDefault(one => one.Matches(module)) is AttentionAdapter adapter)
        {
            AttentionLayer layer = new(module, adapter, this);
            Partition.Add(layer);
            return layer;
        }

        if (linearInWeightDType && LinearLayer.Matches(module))
        {
            return new LinearLayer(module, this);
        }

        if (TokenPieces.Matches(module))
        {
            return new TokenPieces(module);
        }

        if (DecoderLayer.Matches(module))
        {
            return new DecoderLayer(module);
        }

        return adapters.Any(one => one.TakesTurns(module)) ? new ModelTurns(module) : null;
    }

    // While no call of a replaced module is in progress.
    private void Alone(Action action)
    {
        if (_calls.IsReadLockHeld)
        {
            throw new InvalidOperationException("Caches cannot be freed, nor attention restored, in the middle of an attention call.");
        }

        _calls.EnterWriteLock();
        try
        {
            action();
        }
        finally
        {
            _calls.ExitWriteLock();
        }
    }
}
