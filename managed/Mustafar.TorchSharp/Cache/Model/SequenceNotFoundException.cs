namespace Mustafar;

/// <summary>A cache has no sequence with this number: it was never added, or it was removed.</summary>
public sealed class SequenceNotFoundException : ArgumentException
{
    /// <summary>Makes an exception with no text.</summary>
    public SequenceNotFoundException()
    {
    }

    /// <summary>Makes an exception.</summary>
    /// <param name="message">What happened.</param>
    public SequenceNotFoundException(string message)
        : base(message)
    {
    }

    /// <summary>Makes an exception with its cause.</summary>
    /// <param name="message">What happened.</param>
    /// <param name="innerException">The cause.</param>
    public SequenceNotFoundException(string message, Exception innerException)
        : base(message, innerException)
    {
    }

    /// <summary>Makes an exception for a number.</summary>
    /// <param name="sequence">The number.</param>
    public SequenceNotFoundException(int sequence)
        : this($"Expected a sequence of the cache, but there is no sequence {sequence}: it was never added, or it was removed.") =>
        Sequence = sequence;

    /// <summary>The number.</summary>
    public int Sequence { get; }
}
