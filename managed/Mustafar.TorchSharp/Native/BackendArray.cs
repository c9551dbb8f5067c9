using System.Runtime.CompilerServices;

namespace Mustafar.Native;

/// <summary>A small array that native code reads: lengths, page addresses.</summary>
/// <remarks>It lies where the back end can read it; for the CPU that is pinned managed memory.</remarks>
internal sealed unsafe class BackendArray<T>
    where T : unmanaged
{
    private readonly T[] _items;

    internal BackendArray(int length) => _items = GC.AllocateArray<T>(Math.Max(1, length), pinned: true);

    internal Span<T> Span => _items;

    /// <summary>Address of the first element; valid while this object is reachable.</summary>
    internal T* Pointer => (T*)Unsafe.AsPointer(ref _items[0]);

    internal long Bytes => (long)_items.Length * sizeof(T);
}
