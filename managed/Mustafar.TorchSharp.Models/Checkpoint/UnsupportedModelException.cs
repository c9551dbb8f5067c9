namespace Mustafar.Models.Checkpoint;

/// <summary>A checkpoint is valid, but needs a feature that is not implemented here.</summary>
public sealed class UnsupportedModelException : UnusableFileException
{
    /// <summary>Makes an exception.</summary>
    /// <param name="message">What the checkpoint needs, and what is supported.</param>
    /// <param name="file">The file that needs it.</param>
    /// <param name="innerException">The cause, if another exception is.</param>
    public UnsupportedModelException(string message, string file, Exception? innerException = null)
        : base($"{file}: {message}", innerException) => File = file;

    /// <summary>The file that needs it.</summary>
    public string File { get; }
}
