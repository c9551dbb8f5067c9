using Mustafar.Native;
using TorchSharp;

namespace Mustafar;

/// <summary>The pages of each slot, in the order of its tokens, as native code reads them: [slots, capacity] page numbers.</summary>
/// <remarks>Entries past a sequence's tokens are not followed, so they need not be cleared. With no capacity it takes no memory.</remarks>
internal sealed unsafe class PageTable(int slots, int capacity, torch.Device device) : IDisposable
{
    private readonly BackendArray<int>? _entries = capacity == 0 ? null : new(checked(slots * capacity), device);
    private bool _changed;

    /// <summary>Number of entries of each slot.</summary>
    internal int Capacity => capacity;

    internal long Bytes => _entries?.Bytes ?? 0;

    internal int* Pointer => _entries is null ? null : _entries.Pointer;

    /// <summary>Sets an entry, on the host until <see cref="Upload"/>.</summary>
    internal void Set(int slot, int place, int page)
    {
        _entries!.Span[(slot * capacity) + place] = page;
        _changed = true;
    }

    /// <summary>Copies the new entries to the device.</summary>
    internal void Upload()
    {
        if (_changed)
        {
            _entries!.Upload();
            _changed = false;
        }
    }

    public void Dispose() => _entries?.Dispose();
}
