using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// A layer's content in files.
internal sealed unsafe partial class LayerStorage
{
    // Number of dense tokens whose pages are converted at a time.
    private const long ConversionBytes = 64L << 20;

    /// <summary>Reads or writes bytes in place.</summary>
    internal delegate void Visitor(Span<byte> bytes);

    /// <summary>Whether to convert pages of files even if they equal the layer's own, as most do on the CPU: for tests.</summary>
    internal bool ConvertsPages { get; set; }

    /// <summary>Visits the blocks of each head of each page in the form of a file version.</summary>
    /// <param name="keys">Those of keys or those of values.</param>
    /// <param name="version">The version.</param>
    /// <param name="pages">The pages.</param>
    /// <param name="fill">Whether the visitor writes them; it must write valid blocks then.</param>
    /// <param name="visit">Reads or writes a head's blocks.</param>
    internal void VisitPages(bool keys, int version, ReadOnlySpan<int> pages, bool fill, Visitor visit)
    {
        NativeFormat own = keys ? Format.Keys : Format.Values, file = Format.OfFile(keys, version);
        bool isPlain = _shape.Device.type == DeviceType.CPU && !(LayerFormat.HasIntegers(own) && LayerFormat.KeepsAll(own));
        if (isPlain && own.Pattern == file.Pattern && !ConvertsPages)
        {
            VisitHeads(own, Addresses(keys, pages), _table.Pool.HeadStride(_index), visit);
            return;
        }

        long pageBytes = Options.GroupSize * _shape.TokenBytes;
        int most = (int)Math.Clamp(ConversionBytes / pageBytes, 1, int.MaxValue);
        for (int first = 0; first < pages.Length; first += most)
        {
            ConvertPages(keys, file, pages.Slice(first, Math.Min(most, pages.Length - first)), fill, visit);
        }
    }

    /// <summary>The ring of dense tokens [slots, num_kv_heads, ring, head_dim].</summary>
    internal Tensor Window(bool keys) => keys ? _tailKeys : _tailValues;

    /// <summary>Visits the rows of some slots of a tensor [slots, num_kv_heads, places, head_dim].</summary>
    /// <param name="tensor">The tensor.</param>
    /// <param name="slots">The slots.</param>
    /// <param name="places">Number of places of each slot and head that the visitor sees.</param>
    /// <param name="find">Index in the tensor of a place of the b-th slot; null for an unused one, which the visitor sees as zeros.</param>
    /// <param name="fill">Whether the visitor writes them.</param>
    /// <param name="visit">Reads or writes a row.</param>
    internal void VisitRows(Tensor tensor, int[] slots, int places, Func<int, int, int?> find, bool fill, Visitor visit)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        bool isHere = _shape.Device.type == DeviceType.CPU;
        long ownPlaces = tensor.size(2);
        byte[] unused = new byte[_shape.HeadDim * TensorAccess.ElementBytes(tensor.dtype)];
        for (int b = 0; b < slots.Length; b++)
        {
            Tensor own = tensor[slots[b]];
            Tensor host = isHere ? own : fill ? empty(own.shape, dtype: own.dtype, device: CPU) : own.cpu();
            if (fill)
            {
                host.zero_();
            }

            byte* rows = (byte*)TensorAccess.Pointer(host);
            for (int i = 0; i < _shape.NumKvHeads * places; i++)
            {
                // The file's content of an unused place is discarded.
                visit(find(b, i % places) is int place
                    ? new Span<byte>(rows + (((i / places * ownPlaces) + place) * unused.Length), unused.Length)
                    : unused);
            }

            if (fill && !isHere)
            {
                own.copy_(host);
            }

            GC.KeepAlive(host);
        }
    }

    // The address of the first head's keys (or values) in each page.
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

    private void ConvertPages(bool keys, NativeFormat format, ReadOnlySpan<int> pages, bool fill, Visitor visit)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        bool reorders = format.Pattern == (keys ? Format.Keys : Format.Values).Pattern;
        torch.Device device = reorders ? _shape.Device : CPU; // of the blocks in the file's form
        long headBytes = Format.PageBlocks * LayerFormat.BlockBytes(format);
        long pageBytes = _shape.NumKvHeads * headBytes;
        Tensor host = empty([checked((pages.Length * pageBytes) + NativeConstants.PagePadding)], dtype: ScalarType.Byte, device: CPU);
        Tensor plain = device.type == DeviceType.CPU ? host : empty_like(host, device: device);
        using BackendArray<int> ownTable = new(pages.Length, _shape.Device), plainTable = new(pages.Length, device);
        using BackendArray<nint> slab = new(1, device);
        nint[] addresses = new nint[pages.Length];
        for (int i = 0; i < pages.Length; i++)
        {
            ownTable.Span[i] = pages[i];
            plainTable.Span[i] = i;
            addresses[i] = (nint)TensorAccess.Pointer(host) + (nint)(i * pageBytes);
        }

        slab.Span[0] = (nint)TensorAccess.Pointer(plain);
        slab.Upload();
        ownTable.Upload();
        plainTable.Upload();
        NativeBlocks own = Blocks(keys) with { PageCapacity = 1, Pages = ownTable.Pointer };
        NativeBlocks file = own with
        {
            Format = format,
            SlabPages = pages.Length,
            SlabCount = 1,
            PageBytes = pageBytes,
            Base = 0,
            HeadStride = headBytes,
            SlabBytes = plain.numel(),
            Slabs = (void**)slab.Pointer,
            Pages = plainTable.Pointer,
        };
        if (fill)
        {
            VisitHeads(format, addresses, headBytes, visit);
            plain.copy_(host);
            Convert(file, device, own, _shape.Device);
        }
        else
        {
            Convert(own, _shape.Device, file, device);
            host.copy_(plain);
            VisitHeads(format, addresses, headBytes, visit);
        }

        GC.KeepAlive(plain);
        GC.KeepAlive(host);

        void Convert(NativeBlocks source, torch.Device from, NativeBlocks destination, torch.Device to)
        {
            if (reorders)
            {
                Reorder(source, destination, addresses.Length);
            }
            else
            {
                Recompress(source, from, destination, to, addresses.Length);
            }
        }
    }

    private void Reorder(NativeBlocks source, NativeBlocks destination, int pages)
    {
        NativeContext context = TensorAccess.Context(_shape.Device);
        NativeCall.Check(NativeMethods.Convert(&context, pages, _shape.NumKvHeads, Options.GroupSize, &source, &destination));
    }

    // If all channels are kept and only one form has bitmaps: nothing is selected again.
    private void Recompress(NativeBlocks source, torch.Device from, NativeBlocks destination, torch.Device to, int pages)
    {
        Tensor dense = empty([pages, _shape.NumKvHeads, Options.GroupSize, _shape.HeadDim], dtype: _shape.DType, device: from);
        NativeDense rows = TensorAccess.Dense(dense);
        NativeContext context = TensorAccess.Context(from);
        NativeCall.Check(NativeMethods.Decompress(&context, pages, _shape.NumKvHeads, 0, Options.GroupSize, &source, null, &rows));
        dense = dense.to(to);
        rows = TensorAccess.Dense(dense);
        context = TensorAccess.Context(to);
        NativeCall.Check(NativeMethods.Compress(&context, pages, _shape.NumKvHeads, Options.GroupSize, &rows, null, null, null, &destination));
        GC.KeepAlive(dense);
    }
}
