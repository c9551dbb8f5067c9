namespace Mustafar;

/// <summary>Weights that a captured step reads have moved since its capture, through <c>to</c> or because other tensors replaced them.
/// Nothing has changed: after <see cref="DecodeGraph.Forget"/> all sequences can continue.</summary>
public sealed class MovedWeightsException : InvalidOperationException
{
    /// <summary>Makes an exception with no text.</summary>
    public MovedWeightsException()
    {
    }

    /// <summary>Makes an exception.</summary>
    /// <param name="message">What happened.</param>
    public MovedWeightsException(string message)
        : base(message)
    {
    }

    /// <summary>Makes an exception with its cause.</summary>
    /// <param name="message">What happened.</param>
    /// <param name="innerException">The cause.</param>
    public MovedWeightsException(string message, Exception innerException)
        : base(message, innerException)
    {
    }
}
