using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// A model whose attention runs on compressed caches. Disposing it puts the model's own attention back.
/// </summary>
/// <remarks>
/// <para>
/// The compressed caches of a conversation are freed by <see cref="Release"/> or <see cref="ReleaseAll"/>, with this object, when the
/// object that stands for the conversation is collected, or after the model's own cache was disposed: as soon as another conversation
/// begins, or <see cref="Conversations"/> or <see cref="Memory"/> is read.
/// </para>
/// <para>
/// All members are safe from any thread. Conversations may run on several threads, each of them on one at a time, if the model itself
/// may. Calls of a model that keeps the cache of the current call in a field, as those of Microsoft.ML.GenAI do, wait for one another.
/// <see cref="Release"/>, <see cref="ReleaseAll"/> and <see cref="Dispose"/> wait for the attention calls that are under way; a
/// generation that goes on afterwards with what was freed gets an <see cref="InvalidOperationException"/>.
/// </para>
/// </remarks>
public sealed class MustafarAttachment : IDisposable
{
    private readonly nn.Module _model;
    private readonly Dictionary<nn.Module, nn.Module> _originals = new(ReferenceEqualityComparer.Instance);
    private readonly ConditionalWeakTable<object, MustafarConversation> _byObject = new();
    private readonly List<WeakReference<MustafarConversation>> _all = [];
    private int _count;
    private bool _disposed;

    // Attention calls read; what frees caches or exchanges modules writes, and so waits for them.
    private readonly ReaderWriterLockSlim _calls = new(LockRecursionPolicy.SupportsRecursion);

    // The conversation of the thread's latest call in any model.
    [ThreadStatic]
    private static WeakReference<MustafarConversation>? t_latest;

    [RequiresDynamicCode("Emits a subclass of the model's attention class.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    internal MustafarAttachment(
        nn.Module model, MustafarOptions options, bool linearInWeightDType, IReadOnlyList<AttentionAdapter> adapters)
    {
        ReplacementType.ThrowIfRuntimeEmitsNoCode();
        _model = model;
        List<nn.Module> modules = ModuleTree.All(model);
        Options = WithWindow(options, modules, adapters);
        Mask = new AttentionMask(Options.SlidingWindow);
        Dictionary<nn.Module, nn.Module> replacements = new(ReferenceEqualityComparer.Instance);
        foreach (nn.Module module in modules)
        {
            if (module is IReplacedModule)
            {
                throw new InvalidOperationException("The model's attention is replaced already; dispose what replaced it first.");
            }

            ModuleReplacement? replacement = Replacement(module, linearInWeightDType, adapters);
            if (replacement is null || (ReferenceEquals(module, model) && replacement is not AttentionLayer))
            {
                continue;
            }

            if (ReferenceEquals(module, model))
            {
                throw new ArgumentException(
                    $"{module.GetType()} is an attention module itself, which nothing holds where it could be replaced; give the model.",
                    nameof(model));
            }

            Layers += replacement is AttentionLayer ? 1 : 0;
            LinearLayers += replacement is LinearLayer ? 1 : 0;
            nn.Module replaced = ReplacementType.Replace(replacement);
            replacements.Add(module, replaced);
            _originals.Add(replaced, module);
        }

        if (Layers == 0)
        {
            throw new NotSupportedException(
                $"No registered module of {model.GetType()} is attention that one of the {adapters.Count} adapters reads; " +
                $"give an {nameof(AttentionAdapter)} for its class.");
        }

        try
        {
            ModuleTree.Exchange(model, replacements);
            JoinProjections();
        }
        catch
        {
            SeparateProjections();
            ModuleTree.Exchange(model, _originals);
            throw;
        }
    }

    /// <summary>How keys and values are pruned and stored, with the model's sliding window where its configuration has one.</summary>
    public MustafarOptions Options { get; }

    /// <summary>Number of attention layers that were replaced.</summary>
    public int Layers { get; }

    /// <summary>Number of linear layers that run in the data type of their weights, those with quantised weights included.</summary>
    public int LinearLayers { get; }

    /// <summary>The conversations that hold tokens, the oldest first.</summary>
    public IReadOnlyList<MustafarConversation> Conversations
    {
        get
        {
            lock (_all)
            {
                FreeAbandoned();
                return Living().Where(conversation => conversation.BatchSize > 0).ToArray();
            }
        }
    }

    /// <summary>What the compressed caches of all conversations occupy.</summary>
    public KeyValueCacheMemory Memory =>
        Conversations.Aggregate(default(KeyValueCacheMemory), (sum, conversation) => sum + conversation.Memory);

    internal bool IsDisposed => Volatile.Read(ref _disposed);

    internal AttentionMask Mask { get; }

    /// <summary>The conversation that an object stands for.</summary>
    /// <param name="conversation">The object, for most models their own cache; where each layer has a cache of its own (llm-sharp), any
    /// of them; the attention module of Torchsharp-llama.</param>
    /// <returns>The conversation, or null if it has no tokens here.</returns>
    public MustafarConversation? Find(object conversation)
    {
        ArgumentNullException.ThrowIfNull(conversation);
        return _byObject.TryGetValue(conversation, out MustafarConversation? found) && found.BatchSize > 0 ? found : null;
    }

    /// <summary>Frees the compressed caches of one conversation. It cannot be continued, only begun anew.</summary>
    /// <param name="conversation">The object that stands for it, as in <see cref="Find"/>, or the conversation itself.</param>
    /// <returns>Whether it had caches here.</returns>
    /// <exception cref="InvalidOperationException">Called by an <see cref="AttentionAdapter"/> during an attention call.</exception>
    public bool Release(object conversation)
    {
        ArgumentNullException.ThrowIfNull(conversation);
        return (conversation is MustafarConversation given || _byObject.TryGetValue(conversation, out given!)) && given.Release();
    }

    /// <summary>Frees the compressed caches of all conversations. They cannot be continued, only begun anew.</summary>
    /// <exception cref="InvalidOperationException">Called by an <see cref="AttentionAdapter"/> during an attention call.</exception>
    public void ReleaseAll() => Alone(FreeAll);

    /// <summary>
    /// Puts the model's own attention back, the same objects in the same places, and frees all caches. Conversations that are under
    /// way cannot be continued.
    /// </summary>
    /// <exception cref="InvalidOperationException">Called by an <see cref="AttentionAdapter"/> during an attention call.</exception>
    [UnconditionalSuppressMessage("Trimming", "IL2026", Justification = "Who made this object was told.")]
    public void Dispose() => Alone(() =>
    {
        if (_disposed)
        {
            return;
        }

        // First the caches: from then on the model's own attention fails on what is left of these conversations.
        Volatile.Write(ref _disposed, true);
        FreeAll();
        SeparateProjections();
        foreach ((nn.Module replacement, nn.Module original) in _originals)
        {
            // What was assigned to the attention's fields in the meantime stays.
            FieldCopy.Copy(original.GetType(), replacement, original);
        }

        ModuleTree.Exchange(_model, _originals);
    });

    /// <summary>Begins an attention call, which keeps caches from being freed and attention from being put back.</summary>
    /// <returns>Whether attention is still replaced; if not, there is no call to end.</returns>
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

    /// <summary>Ends an attention call.</summary>
    internal void Leave() => _calls.ExitReadLock();

    /// <summary>The conversation of a layer's call.</summary>
    /// <param name="key">The object that stands for it.</param>
    /// <param name="layer">The layer.</param>
    /// <param name="perLayer">See <see cref="AttentionAdapter.HasConversationPerLayer"/>.</param>
    /// <param name="joined">Whether it is that of the thread's latest call, which the object was not known to belong to; that remains to
    /// be confirmed by the tokens.</param>
    internal MustafarConversation ConversationOf(object key, AttentionLayer layer, bool perLayer, out bool joined)
    {
        MustafarConversation? conversation;
        lock (_all)
        {
            if (_byObject.TryGetValue(key, out conversation) && !conversation.IsReleased)
            {
                joined = false;
            }
            else
            {
                conversation = perLayer ? LatestWithout(layer) : null;
                joined = conversation is not null;
                _byObject.AddOrUpdate(key, conversation ??= Begin());
            }
        }

        Latest = conversation;
        return conversation;
    }

    /// <summary>Begins another conversation of which an object is the first to be seen.</summary>
    internal MustafarConversation Begin(object key)
    {
        lock (_all)
        {
            MustafarConversation begun = Begin();
            _byObject.AddOrUpdate(key, begun);
            Latest = begun;
            return begun;
        }
    }

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

    private static MustafarOptions WithWindow(
        MustafarOptions options, List<nn.Module> modules, IReadOnlyList<AttentionAdapter> adapters)
    {
        int[] windows =
            [.. modules.SelectMany(module => adapters.Select(adapter => adapter.SlidingWindowOf(module))).OfType<int>().Distinct()];
        return windows switch
        {
            [] => options,
            [int window] when options.SlidingWindow is null || options.SlidingWindow == window => options with { SlidingWindow = window },
            [int window] => throw new ArgumentException(
                $"Expected {nameof(MustafarOptions.SlidingWindow)} to be {window}, as many tokens as the model shows to each, or null to " +
                $"have it taken from the model, but got {options.SlidingWindow}.",
                nameof(options)),
            _ => throw new NotSupportedException(
                $"The model's layers have different sliding windows ({string.Join(", ", windows)} tokens); a compressed cache has one."),
        };
    }

    private ModuleReplacement? Replacement(
        nn.Module module, bool linearInWeightDType, IReadOnlyList<AttentionAdapter> adapters)
    {
        if (adapters.FirstOrDefault(one => one.Matches(module)) is AttentionAdapter adapter)
        {
            return new AttentionLayer(module, adapter, this);
        }

        if (linearInWeightDType && LinearLayer.Matches(module))
        {
            return new LinearLayer(module);
        }

        return adapters.Any(one => one.TakesTurns(module)) ? new ModelTurns(module) : null;
    }

    // Where linear layers run in the data type of their weights; with the others' conversions the product would be another.
    private void JoinProjections()
    {
        foreach ((nn.Module attention, AttentionLayer layer) in AttentionLayers())
        {
            string[] names = ["q_proj", "k_proj", "v_proj"];
            layer.Projections = JointLinear.TryMake(Array.ConvertAll(names, name => Reflected.Get(attention, name) as nn.Module));
        }
    }

    private void SeparateProjections()
    {
        foreach ((_, AttentionLayer layer) in AttentionLayers())
        {
            layer.Projections?.Dispose();
            layer.Projections = null;
        }
    }

    private IEnumerable<(nn.Module Attention, AttentionLayer Layer)> AttentionLayers()
    {
        foreach (nn.Module module in _originals.Keys)
        {
            if (((IReplacedModule)module).Replacement is AttentionLayer layer)
            {
                yield return (module, layer);
            }
        }
    }

    private static MustafarConversation? Latest
    {
        get => t_latest is not null && t_latest.TryGetTarget(out MustafarConversation? latest) ? latest : null;
        set
        {
            if (value != Latest)
            {
                t_latest = new WeakReference<MustafarConversation>(value!);
            }
        }
    }

    // Of a step that was not through when its conversation was released, too: its other layers must not begin a new one.
    private MustafarConversation? LatestWithout(AttentionLayer layer) =>
        Latest is MustafarConversation latest && latest.IsOf(this) && latest.Lacks(layer) && !latest.Step.Visited(layer) ? latest : null;

    private MustafarConversation Begin()
    {
        FreeAbandoned();
        _all.RemoveAll(one => !one.TryGetTarget(out MustafarConversation? conversation) || conversation.IsReleased);
        MustafarConversation begun = new(this, $"conversation {++_count}");
        _all.Add(new WeakReference<MustafarConversation>(begun));
        return begun;
    }

    private IEnumerable<MustafarConversation> Living()
    {
        foreach (WeakReference<MustafarConversation> one in _all)
        {
            if (one.TryGetTarget(out MustafarConversation? conversation))
            {
                yield return conversation;
            }
        }
    }

    private void FreeAbandoned()
    {
        foreach (MustafarConversation conversation in Living().Where(one => one.IsAbandoned))
        {
            conversation.FreeIfIdle();
        }
    }

    private void FreeAll()
    {
        lock (_all)
        {
            foreach (MustafarConversation conversation in Living())
            {
                conversation.Free();
            }

            _all.Clear();
        }
    }

    // With no attention call under way.
    private void Alone(Action action)
    {
        if (_calls.IsReadLockHeld)
        {
            throw new InvalidOperationException("Caches cannot be freed, nor attention put back, in the middle of an attention call.");
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
