using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// What files hold of a layer.
internal sealed unsafe partial class LayerStorage
{
    // Dense tokens that a conversion expands at a time.
    private const long ConversionBytes = 64L << 20;

    /// <summary>Reads or writes bytes in their place.</summary>
    internal delegate void Visitor(Span<byte> bytes);

    /// <summary>Whether pages of files are converted by way of dense tokens; on the CPU they are the layer's own, unless a test asks.</summary>
    internal bool ConvertsPages { get; set; }

    /// <summary>Shows the blocks of each head of each page in plain order.</summary>
    /// <param name="keys">Those of keys, or those of values.</param>
    /// <param name="pages">The pages.</param>
    /// <param name="fill">Whether the visitor writes them; then what it writes must be valid blocks.</param>
    /// <param name="visit">Reads or writes a head's blocks.</param>
    internal void VisitPages(bool keys, ReadOnlySpan<int> pages, bool fill, Visitor visit)
    {
        if (_shape.Device.type == DeviceType.CPU && !ConvertsPages)
        {
            VisitHeads(keys ? Format.Keys : Format.Values, Addresses(keys, pages), _table.Pool.HeadStride(_index), visit);
            return;
        }

        long pageBytes = Options.GroupSize * _shape.TokenBytes;
        int most = (int)Math.Clamp(ConversionBytes / pageBytes, 1, int.MaxValue);
        for (int first = 0; first < pages.Length; first += most)
        {
            ConvertPages(keys, pages.Slice(first, Math.Min(most, pages.Length - first)), fill, visit);
        }
    }

    /// <summary>The ring of dense tokens [slots, num_kv_heads, ring, head_dim].</summary>
    internal Tensor Window(bool keys) => keys ? _tailKeys : _tailValues;

    /// <summary>Shows the rows of some slots of a tensor [slots, num_kv_heads, places, head_dim].</summary>
    /// <param name="tensor">The tensor.</param>
    /// <param name="slots">The slots.</param>
    /// <param name="inUse">Whether a place of the b-th of them is in use; the others are zero.</param>
    /// <param name="fill">Whether the visitor writes them.</param>
    /// <param name="visit">Reads or writes a row.</param>
    internal void VisitRows(Tensor tensor, int[] slots, Func<int, int, bool> inUse, bool fill, Visitor visit)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        bool isHere = _shape.Device.type == DeviceType.CPU;
        int places = checked((int)tensor.size(2));
        byte[] unused = new byte[_shape.HeadDim * TensorAccess.ElementBytes(tensor.dtype)];
        for (int b = 0; b < slots.Length; b++)
        {
            Tensor own = tensor[slots[b]];
            Tensor host = isHere ? own : fill ? empty(own.shape, dtype: own.dtype, device: CPU) : own.cpu();
            byte* row = (byte*)TensorAccess.Pointer(host);
            for (int i = 0; i < _shape.NumKvHeads * places; i++, row += unused.Length)
            {
                bool used = inUse(b, i % places);
                visit(used || fill ? new Span<byte>(row, unused.Length) : unused);
                if (!used && fill)
                {
                    new Span<byte>(row, unused.Length).Clear();
                }
            }

            if (fill && !isHere)
            {
                own.copy_(host);
            }

            GC.KeepAlive(host);
        }
    }

    // Where the first head's keys (or values) are in each page.
    private nint[] Addresses(bool keys, ReadOnlySpan<int> pages)
    {
        nint[] addresses = new nint[pages.Length];
        for (int i = 0; i < addresses.Length; i++)
        {
            addresses[i] = _table.Pool.Address(pages[i], _index) + (nint)(keys ? 0 : Format.KeyBytes);
        }

        return addresses;
    }

    private void VisitHeads(NativeFormat format, ReadOnlySpan<nint> pages, long headStride, Visitor visit)
    {
        int bytes = checked((int)(Format.PageBlocks * LayerFormat.BlockBytes(format)));
        foreach (nint page in pages)
        {
            for (int head = 0; head < _shape.NumKvHeads; head++)
            {
                visit(new Span<byte>((byte*)page + (head * headStride), bytes));
            }
        }
    }

    // Compressing what was expanded gives the same bits: of a row that has fewer kept channels than the rule asks for because
    // some were zero, the same zeros are kept again.
    private void ConvertPages(bool keys, ReadOnlySpan<int> pages, bool fill, Visitor visit)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        long headBytes = Format.PageBlocks * LayerFormat.BlockBytes(Format.Plain(keys));
        long pageBytes = _shape.NumKvHeads * headBytes;
        Tensor plain = empty([checked((pages.Length * pageBytes) + NativeConstants.PagePadding)], dtype: ScalarType.Byte, device: CPU);
        using BackendArray<int> ownTable = new(pages.Length, _shape.Device), plainTable = new(pages.Length, CPU);
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
            Format = Format.Plain(keys),
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
            Copy(own, _shape.Device, file, CPU, pages.Length);
        }

        VisitHeads(file.Format, addresses, headBytes, visit);
        if (fill)
        {
            Copy(file, CPU, own, _shape.Device, pages.Length);
        }
    }

    private void Copy(NativeBlocks source, torch.Device from, NativeBlocks destination, torch.Device to, int pages)
    {
        Tensor dense = empty([pages, _shape.NumKvHeads, Options.GroupSize, _shape.HeadDim], dtype: _shape.DType, device: from);
        NativeDense rows = TensorAccess.Dense(dense);
        NativeContext context = TensorAccess.Context(from);
        NativeCall.Check(NativeMethods.Decompress(&context, pages, _shape.NumKvHeads, 0, Options.GroupSize, &source, null, &rows));
        dense = dense.to(to);
        rows = TensorAccess.Dense(dense);
        context = TensorAccess.Context(to);
        NativeCall.Check(NativeMethods.Compress(&context, pages, _shape.NumKvHeads, Options.GroupSize, &rows, null, null, &destination));
        GC.KeepAlive(dense);
    }
}
