namespace Mustafar;

/// <summary>A step needs more pages than a cache's budget has left. The cache is unchanged.</summary>
/// <remarks>Removing or shortening sequences frees pages.</remarks>
public sealed class CacheBudgetException : InvalidOperationException
{
    /// <summary>Makes an exception with no text.</summary>
    public CacheBudgetException()
    {
    }

    /// <summary>Makes an exception.</summary>
    /// <param name="message">What happened.</param>
    public CacheBudgetException(string message)
        : base(message)
    {
    }

    /// <summary>Makes an exception with its cause.</summary>
    /// <param name="message">What happened.</param>
    /// <param name="innerException">The cause.</param>
    public CacheBudgetException(string message, Exception innerException)
        : base(message, innerException)
    {
    }

    /// <summary>Makes an exception from the needed and the free bytes.</summary>
    /// <param name="neededBytes">Bytes that are needed.</param>
    /// <param name="freeBytes">Bytes that are free.</param>
    public CacheBudgetException(long neededBytes, long freeBytes)
        : this($"Expected a budget of {neededBytes} more bytes, but {freeBytes} are free. Remove or shorten sequences, or raise the budget.")
    {
        NeededBytes = neededBytes;
        FreeBytes = freeBytes;
    }

    /// <summary>Bytes that were needed.</summary>
    public long NeededBytes { get; }

    /// <summary>Bytes that were free.</summary>
    public long FreeBytes { get; }
}
