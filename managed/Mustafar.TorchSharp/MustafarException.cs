namespace Mustafar;

/// <summary>The native library failed for a reason other than its arguments: a device error, or an incompatible library.</summary>
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
