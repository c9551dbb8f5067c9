namespace Mustafar;

/// <summary>
/// A file can't be used: it is damaged, incomplete, of another kind, or needs a feature that is not implemented. Code that reads files of
/// unknown origin catches this one type; missing and inaccessible files throw .NET's own exceptions.
/// </summary>
public abstract class UnusableFileException : IOException
{
    /// <summary>Makes an exception.</summary>
    /// <param name="message">The file, what was expected, and what came.</param>
    /// <param name="innerException">The cause, if another exception is.</param>
    protected UnusableFileException(string message, Exception? innerException = null)
        : base(message, innerException)
    {
    }
}
