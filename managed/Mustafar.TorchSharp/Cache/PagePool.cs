using System.Collections.Concurrent;
using System.Numerics;
using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Hands out pages of one size. They are cut from slabs that are never moved or enlarged, so what is in a page stays where it is.
/// Several caches may own a pool and share pages; each gives back what it has before it disposes the pool, or abandons both. All
/// members are safe from several threads.
/// </summary>
/// <remarks>
/// In a slab the pages take turns in every KV head: those that follow each other in a slab are, head by head, one run of memory. A
/// sequence therefore gets neighbouring pages where that costs little memory, since a processor reads long runs much faster than many
/// short ones.
/// </remarks>
internal sealed unsafe class PagePool : IDisposable
{
    /// <summary>Pages of a slab.</summary>
    internal const int SlabPages = 8;

    // A sequence of so many pages has slabs of its own, which it may leave unfinished; until then sequences share them.
    private const int LongSequence = 4 * SlabPages;

    private readonly long _pageBytes; // of a page in each head, to the next one
    private readonly long _slabBytes;
    private readonly torch.Device _device;
    private readonly List<Tensor> _memory = [];
    private readonly List<Slab> _slabs = [];
    private readonly List<BackendArray<nint>> _tables = []; // addresses of the slabs; the last one is complete
    private readonly Dictionary<int, int> _sharers = []; // of a page, beyond the first
    private readonly ConcurrentQueue<int[]> _abandoned = [];
    private readonly object _lock = new();
    private int _owners = 1;

    /// <summary>Makes a pool without pages.</summary>
    /// <param name="heads">KV heads in a page.</param>
    /// <param name="headBytes">What a page has of one head, its keys and its values.</param>
    /// <param name="device">Where the pages are.</param>
    internal PagePool(int heads, long headBytes, torch.Device device)
    {
        _pageBytes = (headBytes + NativeConstants.PageAlignment - 1) / NativeConstants.PageAlignment * NativeConstants.PageAlignment;
        HeadStride = SlabPages * _pageBytes;
        _slabBytes = heads * HeadStride;
        _device = device;
    }

    /// <summary>Bytes from one head of a page to the next.</summary>
    internal long HeadStride { get; }

    /// <summary>Bytes of all slabs, pages in use and free ones.</summary>
    internal long Bytes { get; private set; }

    /// <summary>An owner's equal part of <see cref="Bytes"/>.</summary>
    internal long BytesOfOwner => Bytes / Math.Max(1, Volatile.Read(ref _owners));

    /// <summary>The blocks as native code finds them: with the slabs that there are now. Valid as long as the pool.</summary>
    internal NativeBlocks Place(NativeBlocks blocks)
    {
        lock (_lock)
        {
            return blocks with
            {
                SlabPages = SlabPages,
                SlabCount = _slabs.Count,
                PageBytes = _pageBytes,
                HeadStride = HeadStride,
                SlabBytes = _slabBytes + NativeConstants.PagePadding,
                Slabs = _tables.Count == 0 ? null : (void**)_tables[^1].Pointer,
            };
        }
    }

    /// <summary>Address of a page's first head.</summary>
    internal nint Address(int page)
    {
        lock (_lock)
        {
            return _slabs[page / SlabPages].Address + (nint)(page % SlabPages * _pageBytes);
        }
    }

    /// <summary>Numbers of pages for one sequence, which nobody else has.</summary>
    /// <param name="count">How many.</param>
    /// <param name="held">Pages that the sequence has.</param>
    /// <param name="last">The last of them; -1 if it has none.</param>
    internal int[] Rent(int count, int held, int last)
    {
        lock (_lock)
        {
            while (_abandoned.TryDequeue(out int[]? abandoned))
            {
                Array.ForEach(abandoned, ReturnOne);
            }

            int[] pages = new int[count];
            int rented = 0;
            try
            {
                for (; rented < count; rented++)
                {
                    last = pages[rented] = TakeNext(last) ?? TakeFirst(count - rented, isLong: held + count >= LongSequence);
                }
            }
            catch
            {
                Array.ForEach(pages[..rented], GiveBack);
                throw;
            }

            return pages;
        }
    }

    /// <summary>Adds an owner, who is to dispose the pool too.</summary>
    internal PagePool AddOwner()
    {
        Interlocked.Increment(ref _owners);
        return this;
    }

    /// <summary>Adds a sharer of a page in use: it is free again when each of them has returned it.</summary>
    internal void Share(int page)
    {
        lock (_lock)
        {
            _sharers[page] = _sharers.GetValueOrDefault(page) + 1;
        }
    }

    /// <summary>Takes back a page from one of those who have it.</summary>
    internal void Return(int page)
    {
        lock (_lock)
        {
            ReturnOne(page);
        }
    }

    /// <summary>Takes leave of an owner that was collected without disposing the pool, and takes back its pages.</summary>
    /// <remarks>
    /// For finalizers, which must not wait for a lock: when memory runs out in <see cref="Rent"/>, torch waits for them. The pages are
    /// free for the next <see cref="Rent"/>; the slabs of a pool without owners are left to their own finalizers.
    /// </remarks>
    internal void Abandon(int[] pages)
    {
        _abandoned.Enqueue(pages);
        Interlocked.Decrement(ref _owners);
    }

    /// <summary>Frees all slabs once the last owner disposes the pool.</summary>
    public void Dispose()
    {
        if (Interlocked.Decrement(ref _owners) > 0)
        {
            return;
        }

        _memory.ForEach(slabs => slabs.Dispose());
        _memory.Clear();
        _tables.ForEach(table => table.Dispose());
        _tables.Clear();
        _slabs.Clear();
        Bytes = 0;
    }

    private void ReturnOne(int page)
    {
        if (!_sharers.Remove(page, out int others))
        {
            GiveBack(page);
        }
        else if (others > 1)
        {
            _sharers[page] = others - 1;
        }
    }

    // The page behind another one, if it is in the same slab and free.
    private int? TakeNext(int page)
    {
        int next = page + 1;
        return page >= 0 && next % SlabPages != 0 && _slabs[next / SlabPages].IsFree(next % SlabPages) ? Take(next) : null;
    }

    // The first of so many pages that are wanted.
    private int TakeFirst(int wanted, bool isLong)
    {
        int needed = isLong ? SlabPages : 1;
        int best = 0;
        for (int slab = 1; slab < _slabs.Count; slab++)
        {
            best = _slabs[slab].FreePages > _slabs[best].FreePages ? slab : best;
        }

        if (_slabs.Count == 0 || _slabs[best].FreePages < needed)
        {
            best = Allocate((wanted + SlabPages - 1) / SlabPages);
        }

        return Take((best * SlabPages) + _slabs[best].FirstFree);
    }

    private int Take(int page)
    {
        _slabs[page / SlabPages].Take(page % SlabPages);
        return page;
    }

    private void GiveBack(int page) => _slabs[page / SlabPages].GiveBack(page % SlabPages);

    // The first of new slabs.
    private int Allocate(int count)
    {
        // A tensor made in inference mode could not be written to outside of it.
        using IDisposable mode = inference_mode(false);
        int first = _slabs.Count;
        _ = checked((first + count) * SlabPages); // pages are numbered in 32 bits
        long bytes = checked(count * _slabBytes);
        BackendArray<nint> table = Table(first + count);
        Tensor memory = empty([bytes + NativeConstants.PagePadding], dtype: ScalarType.Byte, device: _device).DetachFromDisposeScope();
        _memory.Add(memory);
        Bytes += bytes;
        for (int i = 0; i < count; i++)
        {
            _slabs.Add(new Slab((nint)TensorAccess.Pointer(memory) + (nint)(i * _slabBytes)));
            table.Span[first + i] = _slabs[^1].Address;
        }

        table.Upload();
        return first;
    }

    // The table of addresses, with room for so many. Earlier ones stay as they are: a call of another owner may be reading them.
    private BackendArray<nint> Table(int slabs)
    {
        const int smallest = 64;
        if (_tables.Count == 0 || _tables[^1].Length < slabs)
        {
            BackendArray<nint> larger = new(Math.Max(smallest, 2 * slabs), _device);
            for (int i = 0; i < _slabs.Count; i++)
            {
                larger.Span[i] = _slabs[i].Address;
            }

            larger.Upload();
            _tables.Add(larger);
        }

        return _tables[^1];
    }

    private sealed class Slab(nint address)
    {
        private uint _free = (1u << SlabPages) - 1;

        internal nint Address { get; } = address;

        internal int FreePages => BitOperations.PopCount(_free);

        internal int FirstFree => BitOperations.TrailingZeroCount(_free);

        internal bool IsFree(int page) => (_free >> page & 1) != 0;

        internal void Take(int page) => _free &= ~(1u << page);

        internal void GiveBack(int page) => _free |= 1u << page;
    }
}
