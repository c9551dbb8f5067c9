namespace Mustafar.Models.Checkpoint;

/// <summary>A Git LFS pointer: the few lines that stand for a large file that Git has not downloaded.</summary>
internal static class LfsPointer
{
    private static ReadOnlySpan<byte> Signature => "version https://git-lfs.github.com/spec/"u8;

    /// <summary>Checks that a file is not a Git LFS pointer.</summary>
    /// <param name="path">An existing file.</param>
    /// <exception cref="CheckpointException">It is one.</exception>
    public static void ThrowIfPointer(string path)
    {
        Span<byte> start = stackalloc byte[Signature.Length];
        using FileStream stream = File.OpenRead(path);
        ThrowIfPointer(start[..stream.ReadAtLeast(start, start.Length, throwOnEndOfStream: false)], path);
    }

    /// <summary>Checks that the content of a file is not a Git LFS pointer.</summary>
    /// <param name="content">The file's first bytes, or all of them.</param>
    /// <param name="path">The file.</param>
    /// <exception cref="CheckpointException">It is one.</exception>
    public static void ThrowIfPointer(ReadOnlySpan<byte> content, string path)
    {
        if (content.StartsWith(Signature))
        {
            throw new CheckpointException("this is a Git LFS pointer, not the file itself; run 'git lfs pull' in the checkpoint.", path);
        }
    }
}
