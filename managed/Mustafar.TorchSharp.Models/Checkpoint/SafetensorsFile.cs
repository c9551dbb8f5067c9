using System.IO.MemoryMappedFiles;
using Mustafar.Storage;

namespace Mustafar.Models.Checkpoint;

/// <summary>A safetensors file, mapped into memory: only what is accessed is read from disk.</summary>
public sealed unsafe class SafetensorsFile : IDisposable
{
    private readonly MemoryMappedFile _file;
    private readonly MemoryMappedViewAccessor _view;
    private readonly byte* _base;
    private bool _disposed;

    /// <summary>Opens a file and checks its header.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">The file is not a valid safetensors file, it is truncated, or can't be read.</exception>
    public SafetensorsFile(string path)
    {
        Path = path;
        using FileStream stream = CheckpointFile.OpenRead(path);
        try
        {
            Entries = SafetensorsHeader.Read(stream).Tensors;
        }
        catch (SafetensorsException exception)
        {
            throw new CheckpointException(exception, path);
        }

        _file = MemoryMappedFile.CreateFromFile(
            stream, mapName: null, capacity: 0, MemoryMappedFileAccess.Read, HandleInheritability.None, leaveOpen: true);
        _view = _file.CreateViewAccessor(0, 0, MemoryMappedFileAccess.Read);
        byte* pointer = null;
        _view.SafeMemoryMappedViewHandle.AcquirePointer(ref pointer);
        _base = pointer + _view.PointerOffset;
    }

    /// <summary>The file.</summary>
    public string Path { get; }

    /// <summary>Its tensors by name.</summary>
    public IReadOnlyDictionary<string, SafetensorsEntry> Entries { get; }

    /// <summary>Part of a tensor's data.</summary>
    /// <param name="entry">One of <see cref="Entries"/>.</param>
    /// <param name="start">First byte, relative to the tensor's first.</param>
    /// <param name="count">Number of bytes.</param>
    /// <returns>A view that is valid until the file is disposed.</returns>
    /// <exception cref="ArgumentOutOfRangeException">The part is not inside the tensor.</exception>
    /// <exception cref="ObjectDisposedException">The file was disposed.</exception>
    public ReadOnlySpan<byte> Read(SafetensorsEntry entry, long start, int count)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        ArgumentNullException.ThrowIfNull(entry);
        if (start < 0 || start > entry.ByteCount)
        {
            throw new ArgumentOutOfRangeException(nameof(start), start, $"Expected 0 to {entry.ByteCount}.");
        }

        if (count < 0 || count > entry.ByteCount - start)
        {
            throw new ArgumentOutOfRangeException(nameof(count), count, $"Expected 0 to {entry.ByteCount - start}.");
        }

        return new ReadOnlySpan<byte>(_base + entry.Offset + start, count);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_disposed)
        {
            return;
        }

        _disposed = true;
        _view.SafeMemoryMappedViewHandle.ReleasePointer();
        _view.Dispose();
        _file.Dispose();
    }
}
