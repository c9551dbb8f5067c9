namespace Mustafar;

/// <summary>The native library failed in a way that no argument explains: a device error, or a library that doesn't fit.</summary>
public sealed class MustafarException : Exception
{
    /// <summary>Makes an exception with no text.</summary>
    public MustafarException()
    {
    }

    /// <summary>Makes an exception.</summary>
    /// <param name="message">What happened.</param>
    public MustafarException(string message)
        : base(message)
    {
    }

    /// <summary>Makes an exception with its cause.</summary>
    /// <param name="message">What happened.</param>
    /// <param name="innerException">The cause.</param>
    public MustafarException(string message, Exception innerException)
        : base(message, innerException)
    {
    }
}
