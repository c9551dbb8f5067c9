using System.Collections.Concurrent;
using System.Numerics;
using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Provides pages of one size, which are cut from slabs. Several caches may own a pool and share pages; each returns its pages before
/// it disposes the pool, or abandons both. Several threads may use all members.
/// </summary>
/// <remarks>
/// <para>
/// A page holds the same group of tokens in all layers: a slab has the pages of the first layer, then those of the second, and so on.
/// Within a layer they are arranged by KV head: for each head, consecutive pages of a slab are one run of memory. A sequence therefore gets
/// adjacent pages if that costs little memory, since a CPU reads long runs much faster than many short ones.
/// </para>
/// <para>
/// While all sequences are short, a pool without a limit has slabs of one page, so that they take no more than necessary. When one
/// gets longer, or a second cache owns the pool, the pages are moved to slabs of <see cref="MostSlabPages"/>; from then on they stay
/// in place. Pages keep their numbers.
/// </para>
/// </remarks>
internal sealed unsafe class PagePool : IDisposable
{
    /// <summary>Number of pages in a slab, if the pool is unlimited and a sequence has that many.</summary>
    internal const int MostSlabPages = 8;

    // A limited pool has slabs of at least this many pages, if it has as many: the size that wastes the fewest.
    private const int FewestSlabPages = 5;

    // A sequence of this many pages has separate slabs, which it may leave unfinished; until then sequences share them.
    private const int LongSequence = 4 * MostSlabPages;

    private readonly int _heads;
    private readonly long[] _headBytes; // of a layer: from one page of a head to the next
    private readonly long[] _layerStart; // of a layer in a slab of one page; the last entry is the page's bytes
    private readonly torch.Device _device;
    private readonly List<Tensor> _memory = [];
    private readonly List<Slab> _slabs = [];
    private readonly List<BackendArray<nint>> _tables = []; // addresses of the slabs; the last one is complete
    private readonly Dictionary<int, int> _sharers = []; // of a page, beyond the first
    private readonly ConcurrentQueue<int[]> _abandoned = [];
    private readonly object _lock = new();
    private int _slabPages;
    private int _freePages;
    private int _owners = 1;

    /// <summary>Makes a pool.</summary>
    /// <param name="heads">KV heads in a page.</param>
    /// <param name="headBytes">For each layer, the bytes of one head in a page, for keys and values.</param>
    /// <param name="device">Device of the pages.</param>
    /// <param name="pages">Maximum number of pages, all allocated at once; null for as many as needed.</param>
    /// <param name="mayMove">Whether pages may be moved, once, when a sequence gets long.</param>
    internal PagePool(int heads, ReadOnlySpan<long> headBytes, torch.Device device, int? pages = null, bool mayMove = true)
    {
        (_heads, _slabPages) = (heads, pages is int most ? SlabPagesFor(most) : mayMove ? 1 : MostSlabPages);
        _headBytes = new long[headBytes.Length];
        _layerStart = new long[headBytes.Length + 1];
        for (int i = 0; i < headBytes.Length; i++)
        {
            _headBytes[i] = Aligned(headBytes[i]);
            _layerStart[i + 1] = checked(_layerStart[i] + (heads * _headBytes[i]));
        }

        _device = device;
        if (pages is int limit)
        {
            Limit = limit / _slabPages * _slabPages;
            Allocate(limit / _slabPages);
        }
    }

    /// <summary>Bytes of a page in all layers.</summary>
    internal long PageBytes => _layerStart[^1];

    /// <summary>Number of pages of a pool that doesn't grow; null for one that does.</summary>
    internal int? Limit { get; }

    /// <summary>Number of pages that nobody holds: of the existing ones or, in a limited pool, of all.</summary>
    internal int FreePages
    {
        get
        {
            lock (_lock)
            {
                TakeAbandoned();
                return _freePages;
            }
        }
    }

    /// <summary>Number of pages in all slabs.</summary>
    internal int Pages
    {
        get
        {
            lock (_lock)
            {
                return _slabs.Count * _slabPages;
            }
        }
    }

    /// <summary>How often pages in use have moved.</summary>
    internal int Moves { get; private set; }

    /// <summary>Bytes of all slabs, used and free pages.</summary>
    internal long Bytes { get; private set; }

    /// <summary>Bytes of the pages in use.</summary>
    internal long UsedBytes => (Pages - FreePages) * PageBytes;

    /// <summary>An owner's equal share of <see cref="Bytes"/>.</summary>
    internal long BytesOfOwner => Bytes / Owners;

    /// <summary>An owner's equal share of <see cref="UsedBytes"/>.</summary>
    internal long UsedBytesOfOwner => UsedBytes / Owners;

    /// <summary>Aligned bytes of one head in one layer of a page.</summary>
    internal static long Aligned(long headBytes) =>
        (headBytes + NativeConstants.PageAlignment - 1) / NativeConstants.PageAlignment * NativeConstants.PageAlignment;

    /// <summary>Bytes from one head of a layer's page to the next.</summary>
    internal long HeadStride(int layer = 0) => _slabPages * _headBytes[layer];

    /// <summary>A layer's blocks for native code, with the present slabs. Valid as long as the pool.</summary>
    internal NativeBlocks Place(NativeBlocks blocks, int layer = 0)
    {
        lock (_lock)
        {
            return blocks with
            {
                SlabPages = _slabPages,
                SlabCount = SlabCount,
                PageBytes = _headBytes[layer],
                Base = blocks.Base + LayerStart(layer),
                HeadStride = HeadStride(layer),
                SlabBytes = SlabBytes + NativeConstants.PagePadding,
                Slabs = _tables.Count == 0 ? null : (void**)_tables[^1].Pointer,
            };
        }
    }

    /// <summary>Address of a page's first head in a layer.</summary>
    internal nint Address(int page, int layer = 0)
    {
        lock (_lock)
        {
            return _slabs[page / _slabPages].Address + (nint)(LayerStart(layer) + (page % _slabPages * _headBytes[layer]));
        }
    }

    /// <summary>The bytes of a page in a layer, [heads, bytes]: a view in the current dispose scope.</summary>
    internal Tensor View(int page, int layer)
    {
        lock (_lock)
        {
            Slab slab = _slabs[page / _slabPages];
            long start = slab.Start + LayerStart(layer) + (page % _slabPages * _headBytes[layer]);
            return slab.Memory.as_strided([_heads, _headBytes[layer]], [HeadStride(layer), 1], start);
        }
    }

    /// <summary>Checks that this many pages can be rented.</summary>
    /// <exception cref="CacheBudgetException">The pool is limited, and there are fewer.</exception>
    internal void Require(int pages)
    {
        if (Limit is not null && FreePages is int free && pages > free)
        {
            throw new CacheBudgetException(pages * PageBytes, free * PageBytes);
        }
    }

    /// <summary>Rents pages for one sequence, which nobody else holds.</summary>
    /// <param name="count">Number of pages.</param>
    /// <param name="held">Number of pages that the sequence has.</param>
    /// <param name="last">The last of them; -1 if it has none.</param>
    /// <param name="longest">Number of pages that the sequence, or the longest of several, will have with the new ones; null for their
    /// sum.</param>
    /// <remarks>If <see cref="Moves"/> has grown, addresses obtained earlier are no longer valid.</remarks>
    internal int[] Rent(int count, int held, int last, int? longest = null)
    {
        lock (_lock)
        {
            TakeAbandoned();
            if ((longest ?? held + count) >= MostSlabPages)
            {
                FormRuns();
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

    /// <summary>Adds an owner, which must dispose the pool too.</summary>
    /// <remarks>Two owners may be on two threads, and neither may move what the other reads: pages are moved before that.</remarks>
    internal PagePool AddOwner()
    {
        lock (_lock)
        {
            FormRuns();
        }

        Interlocked.Increment(ref _owners);
        return this;
    }

    /// <summary>Adds a holder of a page in use: the page is free once all of them have returned it.</summary>
    internal void Share(int page)
    {
        lock (_lock)
        {
            _sharers[page] = _sharers.GetValueOrDefault(page) + 1;
        }
    }

    /// <summary>Returns a page that one of its holders gives up.</summary>
    internal void Return(int page)
    {
        lock (_lock)
        {
            ReturnOne(page);
        }
    }

    /// <summary>Removes an owner that was collected without disposing the pool, and returns its pages.</summary>
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
        _tables.ForEach(table => table.Dispose());
        Forget();
    }

    // The number passed to native code. A graph keeps the number of its capture, so on a device it is one that new slabs rarely change: the
    // length of the table, which is padded with the first slab.
    private int SlabCount => _device.type == DeviceType.CPU || _tables.Count == 0 ? _slabs.Count : _tables[^1].Length;

    private int Owners => Math.Max(1, Volatile.Read(ref _owners));

    private long SlabBytes => _slabPages * PageBytes;

    // Where a layer's pages start in a slab.
    private long LayerStart(int layer) => _slabPages * _layerStart[layer];

    // Moves all pages to slabs of several pages, if they are not in such slabs. Pages with consecutive numbers in slabs of one page are
    // then adjacent in memory.
    private void FormRuns()
    {
        if (Limit is not null || _slabPages == MostSlabPages)
        {
            return;
        }

        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        int pages = _slabs.Count;
        Tensor[][] old = [.. Enumerable.Range(0, pages).Select(page => _slabs[page].IsFree(0) ? [] : Views(page))];
        (List<Tensor> memory, List<BackendArray<nint>> tables, Slab[] slabs) = ([.. _memory], [.. _tables], [.. _slabs]);
        (long bytes, int free) = (Bytes, _freePages);
        Forget();
        _slabPages = MostSlabPages;
        try
        {
            if (pages > 0)
            {
                _ = Allocate((pages + MostSlabPages - 1) / MostSlabPages);
            }
        }
        catch
        {
            Forget();
            _slabPages = 1;
            _memory.AddRange(memory);
            _tables.AddRange(tables);
            _slabs.AddRange(slabs);
            (Bytes, _freePages) = (bytes, free);
            throw;
        }

        for (int page = 0; page < pages; page++)
        {
            if (old[page].Length > 0)
            {
                _ = Take(page);
                Tensor[] views = Views(page);
                for (int layer = 0; layer < views.Length; layer++)
                {
                    views[layer].copy_(old[page][layer]);
                }
            }
        }

        Moves++;
        memory.ForEach(tensor => tensor.Dispose());
        tables.ForEach(table => table.Dispose());
    }

    // A page in all layers.
    private Tensor[] Views(int page) => [.. Enumerable.Range(0, _headBytes.Length).Select(layer => View(page, layer))];

    // Leaves the pool without slabs; somebody else disposes their memory.
    private void Forget()
    {
        _memory.Clear();
        _tables.Clear();
        _slabs.Clear();
        (Bytes, _freePages) = (0, 0);
    }

    private static int SlabPagesFor(int pages)
    {
        int best = Math.Min(pages, MostSlabPages);
        for (int size = best - 1; size >= FewestSlabPages; size--)
        {
            best = pages % size < pages % best ? size : best;
        }

        return best;
    }

    private void TakeAbandoned()
    {
        while (_abandoned.TryDequeue(out int[]? abandoned))
        {
            Array.ForEach(abandoned, ReturnOne);
        }
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

    // The page after another one, if it is in the same slab and free.
    private int? TakeNext(int page)
    {
        int next = page + 1;
        return page >= 0 && next % _slabPages != 0 && _slabs[next / _slabPages].IsFree(next % _slabPages) ? Take(next) : null;
    }

    // The first of a number of wanted pages.
    private int TakeFirst(int wanted, bool isLong)
    {
        int needed = isLong ? _slabPages : 1;
        int best = 0;
        for (int slab = 1; slab < _slabs.Count; slab++)
        {
            best = _slabs[slab].FreePages > _slabs[best].FreePages ? slab : best;
        }

        if (Limit is null && (_slabs.Count == 0 || _slabs[best].FreePages < needed))
        {
            best = Allocate((wanted + _slabPages - 1) / _slabPages);
        }

        return _freePages == 0
            ? throw new CacheBudgetException(wanted * PageBytes, 0)
            : Take((best * _slabPages) + _slabs[best].FirstFree);
    }

    private int Take(int page)
    {
        _slabs[page / _slabPages].Take(page % _slabPages);
        _freePages--;
        return page;
    }

    private void GiveBack(int page)
    {
        _slabs[page / _slabPages].GiveBack(page % _slabPages);
        _freePages++;
    }

    // The first of new slabs.
    private int Allocate(int count)
    {
        // A tensor made in inference mode could not be written outside of it.
        using IDisposable mode = inference_mode(false);
        int first = _slabs.Count;
        _ = checked((first + count) * _slabPages); // pages are numbered in 32 bits
        long bytes = checked(count * SlabBytes);
        BackendArray<nint> table = Table(first + count);
        Tensor memory = empty([bytes + NativeConstants.PagePadding], dtype: ScalarType.Byte, device: _device).DetachFromDisposeScope();
        _memory.Add(memory);
        Bytes += bytes;
        _freePages += count * _slabPages;
        for (int i = 0; i < count; i++)
        {
            _slabs.Add(new Slab(_slabPages, memory, i * SlabBytes));
            table.Span[first + i] = _slabs[^1].Address;
        }

        table.Span[_slabs.Count..].Fill(_slabs[0].Address);
        table.Upload();
        return first;
    }

    // The table of addresses, with room for that many. Earlier tables are kept: a call of another owner may be reading them.
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

    private sealed class Slab(int pages, Tensor memory, long start)
    {
        private uint _free = (1u << pages) - 1;

        internal Tensor Memory => memory;

        /// <summary>Its start in the memory, in bytes.</summary>
        internal long Start => start;

        internal nint Address { get; } = (nint)TensorAccess.Pointer(memory) + (nint)start;

        internal int FreePages => BitOperations.PopCount(_free);

        internal int FirstFree => BitOperations.TrailingZeroCount(_free);

        internal bool IsFree(int page) => (_free >> page & 1) != 0;

        internal void Take(int page) => _free &= ~(1u << page);

        internal void GiveBack(int page) => _free |= 1u << page;
    }
}
