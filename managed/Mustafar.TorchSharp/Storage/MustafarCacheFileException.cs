namespace Mustafar;

/// <summary>A file that can't be restored here: it belongs to another model, has other options, is damaged, or is of a newer
/// version.</summary>
public sealed class MustafarCacheFileException : UnusableFileException
{
    /// <summary>Makes an exception.</summary>
    /// <param name="message">What was expected, and what came.</param>
    /// <param name="path">The file at fault.</param>
    /// <param name="innerException">The cause, if another exception is.</param>
    public MustafarCacheFileException(string message, string path, Exception? innerException = null)
        : base($"{path}: {message}", innerException) => Path = path;

    /// <summary>The file at fault.</summary>
    public string Path { get; }
}
