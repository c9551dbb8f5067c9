using System.Text;

namespace Mustafar;

/// <summary>Files that are either unchanged or completely written.</summary>
/// <remarks>
/// A file is written next to its target, as <c>NAME.{32 hexadecimal digits}.tmp</c>, which stays open, and thereby locked, until it is
/// renamed. A process that is killed leaves it behind without the lock, so the next one can tell leftovers from files that
/// another process is writing.
/// </remarks>
internal static class AtomicFile
{
    private const int BufferBytes = 1 << 16;
    private const string Suffix = ".tmp";

    /// <summary>Writes a file next to its target, flushes it to disk, and renames it.</summary>
    /// <param name="path">The file; an existing one is replaced. For a symbolic link, the file that it points to.</param>
    /// <param name="write">Writes the content to a stream that can be read, too. If it fails, nothing is left behind.</param>
    /// <exception cref="IOException">The path is not a regular file, or the file can't be written;
    /// on Windows a file that a process has open can't be replaced.</exception>
    internal static void Write(string path, Action<FileStream> write)
    {
        string target = Target(path);
        RemoveLeftovers(path);
        string temporary = Temporary(target);
        try
        {
            // Whoever removes leftovers opens the file exclusively, and so doesn't get it before it is closed; renaming shares "delete".
            using FileStream stream = new(temporary, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.Delete, BufferBytes);
            write(stream);
            stream.Flush(flushToDisk: true);
            Rename(temporary, target);
        }
        catch
        {
            File.Delete(temporary);
            throw;
        }
    }

    /// <summary>Writes a UTF-8 text file, like <see cref="Write"/>.</summary>
    /// <exception cref="IOException">As for <see cref="Write"/>.</exception>
    internal static void WriteText(string path, string text) => Write(path, stream => stream.Write(Encoding.UTF8.GetBytes(text)));

    /// <summary>Checks that <see cref="Write"/> could write a file, without changing anything.</summary>
    /// <exception cref="IOException">The path is not a regular file, or the directory doesn't exist or is not writable.</exception>
    /// <exception cref="UnauthorizedAccessException">This user may not write in the directory.</exception>
    internal static void Try(string path)
    {
        string target = Target(path);
        string? directory = Path.GetDirectoryName(target);
        if (!Directory.Exists(directory))
        {
            throw new DirectoryNotFoundException($"{path}: the directory '{directory}' doesn't exist.");
        }

        try
        {
            new FileStream(Temporary(target), FileMode.CreateNew, FileAccess.Write, FileShare.None, 1, FileOptions.DeleteOnClose).Dispose();
        }
        catch (UnauthorizedAccessException exception)
        {
            // The system's message names the temporary file.
            throw new UnauthorizedAccessException($"{path}: writing in '{directory}' is not permitted.", exception);
        }
        catch (IOException exception)
        {
            throw new IOException($"{path}: cannot write in '{directory}'.", exception);
        }
    }

    /// <summary>Deletes leftovers of processes that were killed while they wrote a file; those that can't be deleted stay.</summary>
    internal static void RemoveLeftovers(string path)
    {
        string target = Target(path);
        string name = Path.GetFileName(target);
        string[] others;
        try
        {
            others = Directory.GetFiles(Path.GetDirectoryName(target)!, "*" + Suffix);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return;
        }

        foreach (string other in others.Where(other => IsTemporaryOf(name, Path.GetFileName(other))))
        {
            try
            {
                new FileStream(other, FileMode.Open, FileAccess.ReadWrite, FileShare.None, 1).Dispose();
                File.Delete(other);
            }
            catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
            {
                // In use by another process, or not ours.
            }
        }
    }

    private static void Rename(string temporary, string target)
    {
        try
        {
            File.Move(temporary, target, overwrite: true);
        }
        catch (UnauthorizedAccessException exception)
        {
            // The system's message names the temporary file.
            throw new IOException(
                $"{target}: the existing file can't be replaced; it is open in another process, read-only, or owned by another user.",
                exception);
        }
    }

    private static bool IsTemporaryOf(string name, string other) =>
        other.Length == name.Length + 1 + 32 + Suffix.Length
        && other.StartsWith(name + ".", StringComparison.Ordinal)
        && Guid.TryParseExact(other.AsSpan(name.Length + 1, 32), "N", out _);

    private static string Temporary(string target) => $"{target}.{Guid.NewGuid():N}{Suffix}";

    // A link is followed, so that it stays a link.
    private static string Target(string path)
    {
        string full = Path.GetFullPath(path);
        string target = new FileInfo(full).LinkTarget is null ? full : File.ResolveLinkTarget(full, returnFinalTarget: true)!.FullName;
        RegularFile.ThrowIfNotRegular(target);
        return target;
    }
}
