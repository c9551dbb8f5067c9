using System.Runtime.InteropServices;
using System.Runtime.Versioning;

namespace Mustafar;

/// <summary>Opens files that must be regular ones: a pipe could block forever, and a device has no end.</summary>
public static partial class RegularFile
{
    private const int BufferBytes = 1 << 16;
    private const int CurrentDirectory = -100; // AT_FDCWD
    private const uint TypeMask = 1; // STATX_TYPE
    private const int StatxBytes = 256;
    private const int ModeOffset = 28; // stx_mode

    /// <summary>Opens a file for reading.</summary>
    /// <param name="path">The file; a symbolic link is followed.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="DirectoryNotFoundException">There is no such directory.</exception>
    /// <exception cref="IOException">It is not a regular file, or can't be read.</exception>
    /// <exception cref="UnauthorizedAccessException">Reading it is not permitted.</exception>
    public static FileStream OpenRead(string path)
    {
        ThrowIfNotRegular(path);
        // On Windows a file that doesn't share "delete" can't be replaced while it is read.
        FileStream stream = new(
            path, FileMode.Open, FileAccess.Read, FileShare.Read | FileShare.Delete, BufferBytes, FileOptions.SequentialScan);
        if (stream.CanSeek)
        {
            return stream;
        }

        stream.Dispose();
        throw NotRegular(path, "a pipe or a device");
    }

    /// <summary>Checks that a path names a regular file, or nothing.</summary>
    /// <param name="path">The file; a symbolic link is followed.</param>
    /// <exception cref="IOException">It is a directory, a named pipe, a socket or a device.</exception>
    public static void ThrowIfNotRegular(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        if (Directory.Exists(path))
        {
            throw NotRegular(path, "a directory");
        }

        if (OperatingSystem.IsLinux() && KindOf(path) is string kind)
        {
            throw NotRegular(path, kind);
        }
    }

    private static IOException NotRegular(string path, string kind) => new($"{path}: expected a regular file, but it is {kind}.");

    // Null for a regular file, and if the kind is unknown: opening it then fails with its own error. .NET has no name for these kinds.
    [SupportedOSPlatform("linux")]
    private static unsafe string? KindOf(string path)
    {
        byte* status = stackalloc byte[StatxBytes];
        try
        {
            if (Statx(CurrentDirectory, path, 0, TypeMask, status) != 0)
            {
                return null;
            }
        }
        catch (EntryPointNotFoundException)
        {
            return null;
        }

        return (*(ushort*)(status + ModeOffset) & 0xF000) switch
        {
            0x1000 => "a named pipe (FIFO)",
            0x2000 or 0x6000 => "a device",
            0xC000 => "a socket",
            _ => null,
        };
    }

    // The structure is the same on all architectures, unlike that of stat.
    [SupportedOSPlatform("linux")]
    [LibraryImport("libc", EntryPoint = "statx", StringMarshalling = StringMarshalling.Utf8)]
    private static unsafe partial int Statx(int directory, string path, int flags, uint mask, byte* status);
}
