namespace Mustafar.Storage;

/// <summary>A file is not a valid safetensors file, or it is truncated.</summary>
public sealed class SafetensorsException : UnusableFileException
{
    /// <summary>Makes an exception.</summary>
    /// <param name="message">What was expected, and what came.</param>
    /// <param name="tensor">The tensor at fault, if there is one.</param>
    /// <param name="innerException">The cause, if another exception is.</param>
    public SafetensorsException(string message, string? tensor = null, Exception? innerException = null)
        : base(tensor is null ? message : $"tensor '{tensor}': {message}", innerException) => Tensor = tensor;

    /// <summary>The tensor at fault, or null.</summary>
    public string? Tensor { get; }
}
