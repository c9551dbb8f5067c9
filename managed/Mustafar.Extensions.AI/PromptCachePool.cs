using Mustafar.Models.Chat;

namespace Mustafar.Extensions.AI;

/// <summary>The caches of several chats. Only one thread at a time may use it.</summary>
/// <param name="newCache">Makes an empty cache.</param>
/// <param name="capacity">How many are kept.</param>
internal sealed class PromptCachePool(Func<PromptCache> newCache, int capacity) : IDisposable
{
    // Least recently used first.
    private readonly List<PromptCache> _caches = [];

    /// <summary>The cache that holds most of a prompt: that of the same chat, or a fork of one with the same beginning, which keeps its own
    /// cache if there is room; otherwise a new one, or the least recently used one.</summary>
    public PromptCache For(IReadOnlyList<int> prompt)
    {
        PromptCache? best = _caches.MaxBy(cache => cache.Reusable(prompt));
        int reusable = best?.Reusable(prompt) ?? 0;
        bool isSameChat = best is not null && 2 * reusable >= best.Ids.Count;
        PromptCache cache = isSameChat || (best is not null && _caches.Count == capacity && best == _caches[0]) ? best!
            : reusable >= PromptCache.LeastTokens ? best!.Fork(reusable)
            : _caches.Count < capacity ? newCache()
            : _caches[0];
        if (!_caches.Remove(cache) && _caches.Count == capacity)
        {
            _caches[0].Dispose();
            _caches.RemoveAt(0);
        }

        _caches.Add(cache);
        return cache;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _caches.ForEach(cache => cache.Dispose());
        _caches.Clear();
    }
}
