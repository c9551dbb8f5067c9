using Mustafar.Storage;

namespace Mustafar.Models.Checkpoint;

/// <summary>A file of a checkpoint is damaged, incomplete, or doesn't fit the model.</summary>
public sealed class CheckpointException : UnusableFileException
{
    /// <summary>Makes an exception.</summary>
    /// <param name="message">What was expected, and what came.</param>
    /// <param name="file">The file at fault.</param>
    /// <param name="tensor">The tensor at fault, if there is one.</param>
    /// <param name="innerException">The cause, if another exception is.</param>
    public CheckpointException(string message, string file, string? tensor = null, Exception? innerException = null)
        : base(tensor is null ? $"{file}: {message}" : $"{file}: tensor '{tensor}': {message}", innerException)
    {
        File = file;
        Tensor = tensor;
    }

    /// <summary>Makes an exception that names the invalid file.</summary>
    internal CheckpointException(SafetensorsException cause, string file)
        : base($"{file}: {cause.Message}", cause)
    {
        File = file;
        Tensor = cause.Tensor;
    }

    /// <summary>The file at fault.</summary>
    public string File { get; }

    /// <summary>The tensor at fault, or null.</summary>
    public string? Tensor { get; }
}
