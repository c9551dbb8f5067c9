namespace Mustafar;

/// <summary>Lets one thread at a time into a cache, and none once it is disposed.</summary>
/// <param name="owner">The cache. The guard keeps it from being collected during a call.</param>
internal sealed class CallGuard(object owner)
{
    private int _disposed;
    private int _busy;

    internal bool IsDisposed => Volatile.Read(ref _disposed) != 0;

    /// <summary>Throws if the cache was disposed.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    internal void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(IsDisposed, owner);

    /// <summary>Begins a call, which ends when the result is disposed.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is in a call.</exception>
    internal Call Enter()
    {
        if (Interlocked.Exchange(ref _busy, 1) != 0)
        {
            ThrowIfDisposed();
            throw new InvalidOperationException("The cache is in use by another thread; use it on one thread at a time.");
        }

        return new Call(this);
    }

    /// <summary>Admits no further call, and waits for one in progress on another thread.</summary>
    /// <returns>Whether this is the first time, so that the caller must free the storage.</returns>
    internal bool Close()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0)
        {
            return false;
        }

        SpinWait wait = default;
        while (Interlocked.Exchange(ref _busy, 1) != 0)
        {
            wait.SpinOnce();
        }

        return true;
    }

    /// <summary>A call of one thread.</summary>
    internal readonly struct Call(CallGuard guard) : IDisposable
    {
        /// <summary>Ends the call.</summary>
        public void Dispose() => Volatile.Write(ref guard._busy, 0);
    }
}
