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

    private readonly long _pageStride;
    private readonly long _slabBytes;
    private readonly torch.Device _device;
    private readonly List<Tensor> _memory = [];
    private readonly List<Slab> _slabs = [];
    private readonly Dictionary<nint, Slab> _slabOf = [];
    private readonly Dictionary<nint, int> _sharers = []; // of a page, beyond the first
    private readonly ConcurrentQueue<nint[]> _abandoned = [];
    private readonly object _lock = new();
    private int _owners = 1;

    /// <summary>Makes a pool without pages.</summary>
    /// <param name="heads">KV heads in a page.</param>
    /// <param name="headBytes">What a page has of one head, its keys and its values.</param>
    /// <param name="device">Where the pages are.</param>
    internal PagePool(int heads, long headBytes, torch.Device device)
    {
        _pageStride = (headBytes + NativeConstants.PageAlignment - 1) / NativeConstants.PageAlignment * NativeConstants.PageAlignment;
        HeadStride = SlabPages * _pageStride;
        PageBytes = ((heads - 1) * HeadStride) + headBytes + NativeConstants.PagePadding;
        _slabBytes = heads * HeadStride;
        _device = device;
    }

    /// <summary>Bytes from one head of a page to the next.</summary>
    internal long HeadStride { get; }

    /// <summary>Bytes from a page's beginning to its end, between which other pages have their heads.</summary>
    internal long PageBytes { get; }

    /// <summary>Bytes of all slabs, pages in use and free ones.</summary>
    internal long Bytes { get; private set; }

    /// <summary>An owner's equal part of <see cref="Bytes"/>.</summary>
    internal long BytesOfOwner => Bytes / Math.Max(1, Volatile.Read(ref _owners));

    /// <summary>Addresses of pages for one sequence, which nobody else has.</summary>
    /// <param name="count">How many.</param>
    /// <param name="held">Pages that the sequence has.</param>
    /// <param name="last">The last of them; 0 if it has none.</param>
    internal nint[] Rent(int count, int held, nint last)
    {
        lock (_lock)
        {
            while (_abandoned.TryDequeue(out nint[]? abandoned))
            {
                Array.ForEach(abandoned, ReturnOne);
            }

            nint[] pages = new nint[count];
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
    internal void Share(nint page)
    {
        lock (_lock)
        {
            _sharers[page] = _sharers.GetValueOrDefault(page) + 1;
        }
    }

    /// <summary>Takes back a page from one of those who have it.</summary>
    internal void Return(nint page)
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
    internal void Abandon(nint[] pages)
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
        _slabs.Clear();
        _slabOf.Clear();
        Bytes = 0;
    }

    private void ReturnOne(nint page)
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
    private nint? TakeNext(nint page)
    {
        if (page == 0)
        {
            return null;
        }

        Slab slab = _slabOf[page];
        int next = IndexIn(slab, page) + 1;
        return next < SlabPages && slab.IsFree(next) ? Take(slab, next) : null;
    }

    // The first of so many pages that are wanted.
    private nint TakeFirst(int wanted, bool isLong)
    {
        int needed = isLong ? SlabPages : 1;
        Slab? best = _slabs.MaxBy(slab => slab.FreePages);
        if (best is null || best.FreePages < needed)
        {
            best = Allocate((wanted + SlabPages - 1) / SlabPages);
        }

        return Take(best, best.FirstFree);
    }

    private nint Take(Slab slab, int index)
    {
        slab.Take(index);
        return slab.Address + (nint)(index * _pageStride);
    }

    private void GiveBack(nint page)
    {
        Slab slab = _slabOf[page];
        slab.GiveBack(IndexIn(slab, page));
    }

    private int IndexIn(Slab slab, nint page) => (int)((page - slab.Address) / _pageStride);

    // The first of new slabs.
    private Slab Allocate(int count)
    {
        // A tensor made in inference mode could not be written to outside of it.
        using IDisposable mode = inference_mode(false);
        long bytes = checked(count * _slabBytes);
        Tensor memory = empty([bytes + NativeConstants.PagePadding], dtype: ScalarType.Byte, device: _device).DetachFromDisposeScope();
        _memory.Add(memory);
        Bytes += bytes;
        int first = _slabs.Count;
        for (int i = 0; i < count; i++)
        {
            Slab slab = new((nint)TensorAccess.Pointer(memory) + (nint)(i * _slabBytes));
            _slabs.Add(slab);
            for (int page = 0; page < SlabPages; page++)
            {
                _slabOf.Add(slab.Address + (nint)(page * _pageStride), slab);
            }
        }

        return _slabs[first];
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
