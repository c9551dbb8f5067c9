namespace Mustafar;

/// <summary>A call would exceed one of a cache's <see cref="CacheLimits"/>. The cache is unchanged.</summary>
public sealed class CacheLimitException : InvalidOperationException
{
    /// <summary>Makes an exception with no text.</summary>
    public CacheLimitException()
    {
    }

    /// <summary>Makes an exception.</summary>
    /// <param name="message">What happened.</param>
    public CacheLimitException(string message)
        : base(message)
    {
    }

    /// <summary>Makes an exception with its cause.</summary>
    /// <param name="message">What happened.</param>
    /// <param name="innerException">The cause.</param>
    public CacheLimitException(string message, Exception innerException)
        : base(message, innerException)
    {
    }
}
