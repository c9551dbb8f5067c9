using Mustafar.Native;
using TorchSharp;

namespace Mustafar;

/// <summary>The pages of each sequence, in the order of its tokens, as native code reads them: [batch, capacity] page numbers.</summary>
internal sealed unsafe class PageTable : IDisposable
{
    private const int SmallestCapacity = 16;

    private readonly torch.Device _device;
    private readonly int[] _counts;
    private readonly int[] _released;
    private BackendArray<int> _entries;

    internal PageTable(int batchSize, torch.Device device)
    {
        _device = device;
        _counts = new int[batchSize];
        _released = new int[batchSize];
        Capacity = SmallestCapacity;
        _entries = new BackendArray<int>(batchSize * Capacity, device);
    }

    /// <summary>Entries of each sequence.</summary>
    internal int Capacity { get; private set; }

    internal long Bytes => _entries.Bytes;

    internal int* Pointer => _entries.Pointer;

    /// <summary>Pages that a sequence has had in all: those that it has, after those that it gave back from its front.</summary>
    internal int Count(int sequence) => _counts[sequence];

    /// <summary>Pages that a sequence gave back from its front.</summary>
    internal int Released(int sequence) => _released[sequence];

    /// <summary>The pages that a sequence has.</summary>
    internal int[] Pages(int sequence) => _entries.Span[((sequence * Capacity) + _released[sequence])..((sequence * Capacity) + _counts[sequence])].ToArray();

    /// <summary>A sequence's last page; -1 if it has none.</summary>
    internal int Last(int sequence) =>
        _counts[sequence] == _released[sequence] ? -1 : _entries.Span[(sequence * Capacity) + _counts[sequence] - 1];

    /// <summary>Makes room for so many pages of each sequence. Only the table of numbers is copied, never a page.</summary>
    internal void Reserve(int pages)
    {
        if (pages <= Capacity)
        {
            return;
        }

        int capacity = Math.Max(pages, 2 * Capacity);
        BackendArray<int> entries = new(checked(_counts.Length * capacity), _device);
        for (int b = 0; b < _counts.Length; b++)
        {
            _entries.Span.Slice(b * Capacity, _counts[b]).CopyTo(entries.Span[(b * capacity)..]);
        }

        _entries.Dispose();
        (_entries, Capacity) = (entries, capacity);
    }

    /// <summary>Adds a page at a sequence's end; there must be room.</summary>
    internal void Add(int sequence, int page) => _entries.Span[(sequence * Capacity) + _counts[sequence]++] = page;

    /// <summary>Brings the added pages to the device.</summary>
    internal void Upload() => _entries.Upload();

    public void Dispose() => _entries.Dispose();

    /// <summary>Takes a sequence's last page off.</summary>
    internal int RemoveLast(int sequence) => _entries.Span[(sequence * Capacity) + --_counts[sequence]];

    /// <summary>Takes a sequence's first page off. Its entry stays in the table, where nothing reads it.</summary>
    internal int RemoveFirst(int sequence) => _entries.Span[(sequence * Capacity) + _released[sequence]++];

    /// <summary>Lets a sequence without pages begin as if it had given back so many from its front; there must be room.</summary>
    internal void Restart(int sequence, int released = 0) => _counts[sequence] = _released[sequence] = released;
}
