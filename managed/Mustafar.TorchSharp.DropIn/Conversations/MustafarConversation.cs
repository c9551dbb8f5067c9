using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>One conversation of a model whose attention was replaced: the compressed caches of its layers.</summary>
/// <remarks>
/// It lives as long as the object that identifies it in the model, such as the model's own cache, or as this object is held, until it
/// is released or the model disposes its own cache. Any thread may use all members. The conversation itself runs on one thread at
/// a time: a second one gets an <see cref="InvalidOperationException"/>.
/// </remarks>
public sealed class MustafarConversation
{
    private readonly MustafarAttachment _attachment;
    private readonly Dictionary<AttentionLayer, ConversationLayer> _layers = [];
    private string _name;
    private int _busy;
    private volatile bool _released;
    private WeakReference<DisposeScope>? _scope;
    private Tensor? _inScope;

    internal MustafarConversation(MustafarAttachment attachment, string name)
    {
        _attachment = attachment;
        _name = name;
        Caches = new ConversationCaches(attachment.Partition, attachment.Mask, attachment.Options);
    }

    /// <summary>A name to distinguish conversations, which you may set; initially "conversation 1" and so on.</summary>
    /// <exception cref="ArgumentNullException">The value is null.</exception>
    public string Name
    {
        get => Volatile.Read(ref _name);
        set => Volatile.Write(ref _name, value ?? throw new ArgumentNullException(nameof(value)));
    }

    /// <summary>Number of tokens of each sequence that all layers hold, including padding; 0 once it is released.</summary>
    public int Length
    {
        get
        {
            lock (_layers)
            {
                return _layers.Count == 0 ? 0 : _layers.Values.Min(layer => layer.Length);
            }
        }
    }

    /// <summary>Number of sequences; 0 before the first token and once it is released.</summary>
    public int BatchSize
    {
        get
        {
            lock (_layers)
            {
                return _layers.Count == 0 ? 0 : _layers.Values.Max(layer => layer.BatchSize);
            }
        }
    }

    /// <summary>The memory of the compressed caches of all layers, in bytes.</summary>
    public KeyValueCacheMemory Memory => Caches.Memory;

    /// <summary>Whether the caches were freed.</summary>
    public bool IsReleased => _released;

    /// <summary>The current step.</summary>
    internal ConversationStep Step { get; } = new();

    /// <summary>The compressed keys and values.</summary>
    internal ConversationCaches Caches { get; }

    /// <summary>Frees the compressed caches. The conversation cannot be continued, only started again, as another one.</summary>
    /// <remarks>Waits for attention calls in progress; a generation that continues afterwards gets an
    /// <see cref="InvalidOperationException"/>.</remarks>
    /// <returns>Whether there were any to free.</returns>
    /// <exception cref="InvalidOperationException">Called by an <see cref="AttentionAdapter"/> during an attention call.</exception>
    public bool Release() => _attachment.Free(this);

    /// <summary>Whether the model disposed its own cache, without which the conversation cannot continue.</summary>
    internal bool IsAbandoned
    {
        get
        {
            lock (_layers)
            {
                return _inScope is { IsInvalid: true } || _layers.Values.Any(layer => layer.IsAbandoned);
            }
        }
    }

    /// <summary>See <see cref="AttentionResult.ReleaseWith"/>.</summary>
    internal void ReleaseWith(DisposeScope scope)
    {
        if (_scope is null || !_scope.TryGetTarget(out DisposeScope? known) || known != scope)
        {
            _scope = new WeakReference<DisposeScope>(scope);
            // The scope ends it. It is not used here again, since a scope belongs to the thread that uses it.
            _inScope = empty(0).MoveToOtherDisposeScope(scope);
        }
    }

    /// <summary>Frees the caches once the model has disposed its own, unless a thread is still in a call.</summary>
    internal void FreeIfIdle()
    {
        if (TryEnter())
        {
            Free();
            Leave();
        }
    }

    /// <summary>Begins an attention call.</summary>
    /// <exception cref="InvalidOperationException">Another thread is in one.</exception>
    internal void Enter()
    {
        if (!TryEnter())
        {
            throw new InvalidOperationException(
                $"Another thread is generating in this conversation ({Name}); a conversation runs on one thread at a time.");
        }
    }

    /// <summary>Ends an attention call.</summary>
    internal void Leave() => Volatile.Write(ref _busy, 0);

    /// <summary>Whether it belongs to a model's attachment.</summary>
    internal bool IsOf(MustafarAttachment attachment) => ReferenceEquals(_attachment, attachment);

    /// <summary>Whether a layer has had no call.</summary>
    internal bool Lacks(AttentionLayer layer)
    {
        lock (_layers)
        {
            return !_layers.ContainsKey(layer);
        }
    }

    /// <summary>A layer's part; an empty one at its first call.</summary>
    internal ConversationLayer Of(AttentionLayer layer)
    {
        lock (_layers)
        {
            if (!_layers.TryGetValue(layer, out ConversationLayer? part))
            {
                part = new ConversationLayer();
                _layers.Add(layer, part);
            }

            return part;
        }
    }

    private bool TryEnter() => Interlocked.Exchange(ref _busy, 1) == 0;

    /// <summary>Frees the caches; no attention call may be in progress.</summary>
    internal void Free()
    {
        lock (_layers)
        {
            _released = true;
            Caches.Free();
            foreach (ConversationLayer layer in _layers.Values)
            {
                layer.Dispose();
            }

            _layers.Clear();
        }
    }
}
