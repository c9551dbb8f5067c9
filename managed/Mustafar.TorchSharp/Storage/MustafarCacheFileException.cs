namespace Mustafar;

/// <summary>A file is no cache that could be restored here: of another model, of other options, damaged, or of a newer version.</summary>
public sealed class MustafarCacheFileException : UnusableFileException
{
    /// <summary>Makes an exception.</summary>
    /// <param name="message">What was expected, and what came.</param>
    /// <param name="path">The file at fault.</param>
    /// <param name="inner">The cause, if another exception is.</param>
    public MustafarCacheFileException(string message, string path, Exception? inner = null)
        : base($"{path}: {message}", inner) => Path = path;

    /// <summary>The file at fault.</summary>
    public string Path { get; }
}
