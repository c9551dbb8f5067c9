namespace Mustafar.Models.Checkpoint;

/// <summary>Opens files of a checkpoint, which must be regular files and not Git LFS pointers.</summary>
internal static class CheckpointFile
{
    /// <summary>Opens a file for reading.</summary>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">It is not a regular file, can't be read, or is a Git LFS pointer.</exception>
    public static FileStream OpenRead(string path)
    {
        // Also true for pipes and devices, so that they get their own message.
        if (!File.Exists(path) && !Directory.Exists(path))
        {
            throw new FileNotFoundException($"{path}: the file doesn't exist.", path);
        }

        try
        {
            RegularFile.ThrowIfNotRegular(path);
            LfsPointer.ThrowIfPointer(path);
            return RegularFile.OpenRead(path);
        }
        catch (UnauthorizedAccessException exception)
        {
            throw new CheckpointException("expected a readable file, but access is denied.", path, innerException: exception);
        }
        catch (IOException exception) when (exception is not (CheckpointException or FileNotFoundException))
        {
            string problem = exception.Message.StartsWith($"{path}: ", StringComparison.Ordinal)
                ? exception.Message[(path.Length + 2)..]
                : exception.Message;
            throw new CheckpointException(problem, path, innerException: exception);
        }
    }

    /// <summary>Reads a whole file.</summary>
    /// <param name="path">The file.</param>
    /// <param name="limit">Maximum number of bytes; less than what an array can hold.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">It is larger, not a regular file, can't be read, or is a Git LFS pointer.</exception>
    public static byte[] ReadAllBytes(string path, long limit)
    {
        using FileStream stream = OpenRead(path);
        if (stream.Length > limit)
        {
            throw new CheckpointException($"expected at most {limit} bytes, but it has {stream.Length}; is it the wrong file?", path);
        }

        byte[] bytes = new byte[stream.Length];
        return bytes.AsSpan(0, stream.ReadAtLeast(bytes, bytes.Length, throwOnEndOfStream: false)).ToArray();
    }
}
