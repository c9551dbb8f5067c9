namespace Mustafar;

// Where files are written to and read from.
public static partial class MustafarCacheFile
{
    private const int BufferBytes = 1 << 16;

    // Opens the input: the stream at its first byte, its name in error messages, and whether it must be disposed afterwards.
    private delegate (Stream Stream, string Name, bool IsOwn) Source();

    private static Action<Action<Stream>> To(string path) => write => AtomicFile.Write(path, stream => write(stream));

    private static Action<Action<Stream>> To(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        return !stream.CanWrite
            ? throw new ArgumentException("Expected a stream that can be written to.", nameof(stream))
            : write => write(stream);
    }

    private static Source From(string path) => () =>
    {
        AtomicFile.RemoveLeftovers(path);
        return (RegularFile.OpenRead(path), path, true);
    };

    private static Source From(Stream stream, CancellationToken cancellationToken)
    {
        ArgumentNullException.ThrowIfNull(stream);
        return !stream.CanRead
            ? throw new ArgumentException("Expected a stream that can be read.", nameof(stream))
            : () => stream.CanSeek && stream.Position == 0 ? (stream, "the stream", false) : (Spooled(stream, cancellationToken), "the stream", true);
    }

    // The rest of a stream in a file that is deleted on close: the checksum is only known at its end, and nothing is restored before.
    private static FileStream Spooled(Stream stream, CancellationToken cancellationToken)
    {
        FileStream file = new(
            Path.Combine(Path.GetTempPath(), $"mustafar.{Guid.NewGuid():N}.tmp"),
            FileMode.CreateNew,
            FileAccess.ReadWrite,
            FileShare.None,
            BufferBytes,
            FileOptions.DeleteOnClose);
        try
        {
            byte[] chunk = new byte[BufferBytes];
            for (int count = stream.Read(chunk); count > 0; count = stream.Read(chunk))
            {
                cancellationToken.ThrowIfCancellationRequested();
                file.Write(chunk, 0, count);
            }

            file.Position = 0;
            return file;
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }
}
