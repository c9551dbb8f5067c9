namespace Mustafar;

/// <summary>Files that are either as they were or completely written.</summary>
internal static class AtomicFile
{
    private const int BufferBytes = 1 << 16;

    /// <summary>Writes a file beside its place, brings it to the disk, and gives it its name.</summary>
    /// <param name="path">The file; one that is there is replaced.</param>
    /// <param name="write">Writes the content to a stream that can be read, too. If it fails, nothing is left behind.</param>
    internal static void Write(string path, Action<FileStream> write)
    {
        string target = Path.GetFullPath(path);
        string temporary = $"{target}.{Guid.NewGuid():N}.tmp";
        try
        {
            using (FileStream stream = new(temporary, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None, BufferBytes))
            {
                write(stream);
                stream.Flush(flushToDisk: true);
            }

            File.Move(temporary, target, overwrite: true);
        }
        catch
        {
            File.Delete(temporary);
            throw;
        }
    }
}
