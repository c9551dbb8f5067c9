using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// What files hold of a cache.
public sealed unsafe partial class MustafarCache
{
    // Dense tokens that a conversion expands at a time.
    private const long ConversionBytes = 64L << 20;

    /// <summary>Reads or writes bytes in their place.</summary>
    internal delegate void Visitor(Span<byte> bytes);

    /// <summary>Whether pages of files are converted by way of dense tokens; on the CPU they are the cache's own, unless a test asks.</summary>
    internal bool ConvertsPages { get; set; }

    /// <summary>Keeps other threads out until it is disposed.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    internal IDisposable Claim() => new Claimed(this);

    /// <summary>The tables of the sequences, and the pages in the order of their numbers.</summary>
    internal (CacheTables Tables, int[] Pages) Tables()
    {
        Dictionary<int, int> numbers = [];
        List<int> indices = [];
        int[] released = new int[BatchSize];
        for (int b = 0; b < BatchSize; b++)
        {
            released[b] = _pages.Released(b);
            foreach (int page in _pages.Pages(b))
            {
                if (!numbers.TryGetValue(page, out int number))
                {
                    number = numbers.Count;
                    numbers.Add(page, number);
                }

                indices.Add(number);
            }
        }

        int[] sinks = _sinks is null ? new int[BatchSize] : _sinks.Counts.ToArray();
        CacheTables tables = new(_state.Lengths.ToArray(), _state.Compressed.ToArray(), released, sinks, [.. indices]);
        return (tables, [.. numbers.Keys]);
    }

    /// <summary>What is wrong with tables that are to become this cache's; null if nothing is.</summary>
    internal string? Problem(CacheTables tables, long pages) =>
        tables.Problem(Options, int.MaxValue - NativeConstants.BlockTokens - Options.SinkTokens, Due, pages);

    /// <summary>Shape of pages in a file: [pages, num_kv_heads, blocks, bytes].</summary>
    internal long[] PagesShape(bool keys, long pages) => [pages, NumKvHeads, PageBlocks, BlockBytes(PlainFormat(keys))];

    /// <summary>Shape of the dense window in a file: [batch, num_kv_heads, slots, head_dim].</summary>
    internal long[] WindowShape => _tailKeys.shape;

    /// <summary>Format of blocks in a file.</summary>
    internal NativeFormat PlainFormat(bool keys) => (keys ? _keyFormat : _valueFormat) with { Order = (int)Order.Plain };

    /// <summary>Takes free pages.</summary>
    internal int[] RentPages(int count) => _pool.Rent(count, held: 0, last: -1);

    /// <summary>Shows the blocks of each head of each page in plain order.</summary>
    /// <param name="keys">Those of keys, or those of values.</param>
    /// <param name="pages">The pages.</param>
    /// <param name="fill">Whether the visitor writes them; then what it writes must be valid blocks.</param>
    /// <param name="visit">Reads or writes a head's blocks.</param>
    internal void VisitPages(bool keys, ReadOnlySpan<int> pages, bool fill, Visitor visit)
    {
        if (Device.type == DeviceType.CPU && !ConvertsPages)
        {
            VisitHeads(Blocks(keys), Addresses(pages), visit);
            return;
        }

        long pageBytes = 2L * NumKvHeads * Options.GroupSize * HeadDim * TensorAccess.ElementBytes(DType);
        int most = (int)Math.Clamp(ConversionBytes / pageBytes, 1, int.MaxValue);
        for (int first = 0; first < pages.Length; first += most)
        {
            ConvertPages(keys, pages.Slice(first, Math.Min(most, pages.Length - first)), fill, visit);
        }
    }

    /// <summary>Shows the slots of the dense window; those that no token is in are zero in files.</summary>
    /// <param name="keys">Keys or values.</param>
    /// <param name="tables">Which slots are in use.</param>
    /// <param name="fill">Whether the visitor writes them.</param>
    /// <param name="visit">Reads or writes a slot.</param>
    internal void VisitWindow(bool keys, CacheTables tables, bool fill, Visitor visit) => VisitSlots(
        keys ? _tailKeys : _tailValues,
        (b, slot) => (slot - (tables.Compressed[b] % _tailCapacity) + _tailCapacity) % _tailCapacity < tables.Lengths[b] - tables.Compressed[b],
        fill,
        visit);

    /// <summary>Shows the slots of the sinks, in Float32; those that no token is in are zero.</summary>
    /// <param name="keys">Keys or values.</param>
    /// <param name="tables">Which slots are in use.</param>
    /// <param name="fill">Whether the visitor writes them.</param>
    /// <param name="visit">Reads or writes a slot.</param>
    internal void VisitSinks(bool keys, CacheTables tables, bool fill, Visitor visit) =>
        VisitSlots(keys ? _sinks!.Keys : _sinks!.Values, (b, slot) => slot < tables.Sinks[b], fill, visit);

    /// <summary>Makes room for pages, so that <see cref="Restore"/> needs none.</summary>
    internal void Reserve(CacheTables tables) => _pages.Reserve(tables.Compressed.Max() / Options.GroupSize);

    /// <summary>Takes over what was put in place: pages, window and sinks.</summary>
    internal void Restore(CacheTables tables, int[] pages)
    {
        bool[] taken = new bool[pages.Length];
        int next = 0;
        for (int b = 0; b < BatchSize; b++)
        {
            _pages.Restart(b, tables.Released[b]);
            for (int left = tables.PagesOf(b, Options.GroupSize); left > 0; left--, next++)
            {
                int number = tables.PageIndices[next];
                if (taken[number])
                {
                    _pool.Share(pages[number]);
                }

                taken[number] = true;
                _pages.Add(b, pages[number]);
            }

            _state.Set(b, tables.Lengths[b], tables.Compressed[b]);
        }

        _sinks?.SetCounts(tables.Sinks);
        _pages.Upload();
        _state.Upload();
    }

    /// <summary>Gives back pages that were not taken over, and empties the sinks.</summary>
    internal void Discard(int[] pages)
    {
        foreach (int page in pages)
        {
            _pool.Return(page);
        }

        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        _sinks?.Keys.zero_();
        _sinks?.Values.zero_();
    }

    private nint[] Addresses(ReadOnlySpan<int> pages)
    {
        nint[] addresses = new nint[pages.Length];
        for (int i = 0; i < addresses.Length; i++)
        {
            addresses[i] = _pool.Address(pages[i]);
        }

        return addresses;
    }

    private void VisitHeads(in NativeBlocks blocks, ReadOnlySpan<nint> pages, Visitor visit)
    {
        NativeFormat format = blocks.Format;
        int bytes = checked((int)(blocks.PageBlocks * BlockBytes(format)));
        foreach (nint page in pages)
        {
            for (int head = 0; head < NumKvHeads; head++)
            {
                visit(new Span<byte>((byte*)page + blocks.Base + (head * blocks.HeadStride), bytes));
            }
        }
    }

    // Compressing what was expanded gives the same bits: of a row that has fewer kept channels than the rule asks for because
    // some were zero, the same zeros are kept again.
    private void ConvertPages(bool keys, ReadOnlySpan<int> pages, bool fill, Visitor visit)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        long headBytes = PageBlocks * BlockBytes(PlainFormat(keys));
        long pageBytes = NumKvHeads * headBytes;
        Tensor plain = empty([checked((pages.Length * pageBytes) + NativeConstants.PagePadding)], dtype: ScalarType.Byte, device: CPU);
        using BackendArray<int> ownTable = new(pages.Length, Device), plainTable = new(pages.Length, CPU);
        nint[] addresses = new nint[pages.Length];
        void* slab = TensorAccess.Pointer(plain);
        for (int i = 0; i < pages.Length; i++)
        {
            ownTable.Span[i] = pages[i];
            plainTable.Span[i] = i;
            addresses[i] = (nint)slab + (nint)(i * pageBytes);
        }

        ownTable.Upload();
        NativeBlocks own = Blocks(keys) with { PageCapacity = 1, Pages = ownTable.Pointer };
        NativeBlocks file = own with
        {
            Format = PlainFormat(keys),
            SlabPages = pages.Length,
            SlabCount = 1,
            PageBytes = pageBytes,
            Base = 0,
            HeadStride = headBytes,
            SlabBytes = plain.numel(),
            Slabs = &slab,
            Pages = plainTable.Pointer,
        };
        if (!fill)
        {
            Copy(own, Device, file, CPU, pages.Length);
        }

        VisitHeads(file, addresses, visit);
        if (fill)
        {
            Copy(file, CPU, own, Device, pages.Length);
        }
    }

    private void Copy(NativeBlocks source, torch.Device from, NativeBlocks destination, torch.Device to, int pages)
    {
        Tensor dense = empty([pages, NumKvHeads, Options.GroupSize, HeadDim], dtype: DType, device: from);
        NativeDense rows = TensorAccess.Dense(dense);
        NativeContext context = TensorAccess.Context(from);
        NativeCall.Check(NativeMethods.Decompress(&context, pages, NumKvHeads, 0, Options.GroupSize, &source, &rows));
        dense = dense.to(to);
        rows = TensorAccess.Dense(dense);
        context = TensorAccess.Context(to);
        NativeCall.Check(NativeMethods.Compress(&context, pages, NumKvHeads, Options.GroupSize, &rows, null, &destination));
        GC.KeepAlive(dense);
    }

    // Rows of a tensor [batch, num_kv_heads, slots, head_dim].
    private void VisitSlots(Tensor tensor, Func<int, int, bool> inUse, bool fill, Visitor visit)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        bool isHere = Device.type == DeviceType.CPU;
        Tensor host = isHere ? tensor : fill ? empty(tensor.shape, dtype: tensor.dtype, device: CPU) : tensor.cpu();
        int slots = checked((int)tensor.size(2));
        int rowBytes = HeadDim * TensorAccess.ElementBytes(tensor.dtype);
        byte* row = (byte*)TensorAccess.Pointer(host);
        byte[] unused = new byte[rowBytes];
        for (int b = 0; b < BatchSize; b++)
        {
            for (int i = 0; i < NumKvHeads * slots; i++, row += rowBytes)
            {
                bool used = inUse(b, i % slots);
                visit(used || fill ? new Span<byte>(row, rowBytes) : unused);
                if (!used && fill)
                {
                    new Span<byte>(row, rowBytes).Clear();
                }
            }
        }

        if (fill && !isHere)
        {
            tensor.copy_(host);
        }

        GC.KeepAlive(host);
    }

    private sealed class Claimed : IDisposable
    {
        private readonly MustafarCache _cache;

        internal Claimed(MustafarCache cache)
        {
            _cache = cache;
            cache.Enter();
        }

        public void Dispose() => _cache.Leave();
    }
}
