using System.Runtime.CompilerServices;

namespace Mustafar.DropIn;

/// <summary>The conversations of a model, and the objects that identify them. Any thread may use it.</summary>
internal sealed class ConversationList(MustafarAttachment attachment)
{
    private readonly ConditionalWeakTable<object, MustafarConversation> _byObject = new();
    private readonly List<WeakReference<MustafarConversation>> _all = [];
    private int _count;

    // The conversation of the thread's latest call in any model.
    [ThreadStatic]
    private static WeakReference<MustafarConversation>? t_latest;

    /// <summary>Those that hold tokens, the oldest first.</summary>
    internal MustafarConversation[] Present
    {
        get
        {
            lock (_all)
            {
                FreeAbandoned();
                return [.. Living().Where(conversation => conversation.BatchSize > 0)];
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

    /// <summary>The conversation that an object identifies, whether or not it holds tokens; null if there is none.</summary>
    internal MustafarConversation? Find(object key) => _byObject.TryGetValue(key, out MustafarConversation? found) ? found : null;

    /// <summary>The conversation of a layer's call.</summary>
    /// <param name="key">The object that identifies it.</param>
    /// <param name="layer">The layer.</param>
    /// <param name="perLayer">See <see cref="AttentionAdapter.HasConversationPerLayer"/>.</param>
    /// <param name="joined">Whether it is that of the thread's latest call, which the object was not known to belong to; the tokens have
    /// yet to confirm that.</param>
    internal MustafarConversation Of(object key, AttentionLayer layer, bool perLayer, out bool joined)
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

    /// <summary>Frees the caches of all; no attention call may be in progress.</summary>
    internal void FreeAll()
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

    // Including a step that was not finished when its conversation was released: its other layers must not begin a new one.
    private MustafarConversation? LatestWithout(AttentionLayer layer) =>
        Latest is MustafarConversation latest && latest.IsOf(attachment) && latest.Lacks(layer) && !latest.Step.Visited(layer) ? latest : null;

    private MustafarConversation Begin()
    {
        FreeAbandoned();
        _all.RemoveAll(one => !one.TryGetTarget(out MustafarConversation? conversation) || conversation.IsReleased);
        MustafarConversation begun = new(attachment, $"conversation {++_count}");
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
}
