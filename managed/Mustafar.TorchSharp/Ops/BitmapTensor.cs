using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// A pruned tensor [batch, num_kv_heads, tokens, head_dim] in Mustafar's compressed form: a bitmap of the kept channels and the
/// kept values, packed.
/// </summary>
/// <remarks>
/// The storage is one torch tensor of bytes that belongs to this object and to no dispose scope. The format is that of
/// <c>mustafar.h</c>: blocks of 32 tokens, each with its bitmap and its values. (Mustafar, section 4.) The object is immutable, so any
/// number of threads may use it at once; disposing waits for calls that are reading it.
/// </remarks>
/// <example>
/// <code>
/// Tensor keys = randn(1, 2, 1000, 64), values = randn(1, 2, 1000, 64);
/// using BitmapTensor compressedKeys = BitmapTensor.Compress(keys, kept: 32);
/// using BitmapTensor compressedValues = BitmapTensor.Compress(values, kept: 20, bits: 8);
///
/// Tensor scores = compressedKeys.KeyScores(randn(1, 4, 1, 64)); // [batch, num_heads, queries, tokens]
/// Tensor attended = MustafarOps.Attention(randn(1, 4, 1, 64), compressedKeys, compressedValues);
/// Console.WriteLine($"{compressedKeys.Bytes} bytes instead of {compressedKeys.DenseBytes}");
/// </code>
/// </example>
public sealed unsafe class BitmapTensor : IDisposable
{
    private readonly Tensor _storage;
    private readonly BackendArray<nint> _slab;
    private readonly BackendArray<int> _pages;
    private readonly BackendArray<uint>? _offsets;
    private readonly NativeFormat _format;
    private readonly Tensor? _channelScales; // Float32 [batch, num_kv_heads, head_dim]
    private readonly long _bytes; // of the storage
    private readonly long _headBytes; // a sequence's blocks of one head, if all are of one size
    private int _users; // calls that read the storage
    private int _disposed;

    private BitmapTensor(
        Tensor source, NativeFormat format, int bits, Tensor? channelScales, BackendArray<uint>? offsets, long bytes)
    {
        long[] shape = source.shape;
        (BatchSize, NumKvHeads, HeadDim) = ((int)shape[0], (int)shape[1], (int)shape[3]);
        Tokens = shape[2];
        (DType, Device, Bits) = (source.dtype, source.device, bits);
        _format = format;
        _offsets = offsets;
        _bytes = bytes;
        _headBytes = offsets is null ? (bytes - NativeConstants.PagePadding) / Math.Max(1, shape[0] * shape[1]) : 0;
        Kept = offsets is null ? format.Keep : null;
        using (inference_mode(false))
        {
            _storage = empty([bytes], dtype: ScalarType.Byte, device: Device).DetachFromDisposeScope();
            _channelScales = channelScales is null
                ? null
                : empty(channelScales.shape, dtype: ScalarType.Float32, device: Device).copy_(channelScales).DetachFromDisposeScope();
        }

        // With a fixed number of values each sequence has a page of its own; with offsets all share one.
        _slab = new BackendArray<nint>(1, Device);
        _slab.Span[0] = (nint)TensorAccess.Pointer(_storage);
        _slab.Upload();
        _pages = new BackendArray<int>(BatchSize, Device);
        for (int b = 0; b < BatchSize; b++)
        {
            _pages.Span[b] = offsets is null ? b : 0;
        }

        _pages.Upload();
    }

    /// <summary>Number of sequences.</summary>
    public int BatchSize { get; }

    /// <summary>Number of KV heads.</summary>
    public int NumKvHeads { get; }

    /// <summary>Number of tokens of each sequence.</summary>
    public long Tokens { get; }

    /// <summary>Channels of a row.</summary>
    public int HeadDim { get; }

    /// <summary>Number of channels kept of each row (balanced values: on average); null if a mask chose them.</summary>
    public int? Kept { get; }

    /// <summary>Bits of a stored value: 8 or 4 for integers with a scale per row, 16 for values of <see cref="DType"/>.</summary>
    public int Bits { get; }

    /// <summary>Whether channels have their own scales, as those of keys may.</summary>
    public bool HasChannelScales => _channelScales is not null;

    /// <summary>Type of the dense form.</summary>
    public ScalarType DType { get; }

    /// <summary>Device of the tensor.</summary>
    public torch.Device Device { get; }

    /// <summary>Bytes of the compressed form.</summary>
    public long Bytes => _bytes + (_offsets?.Bytes ?? 0) + ((_channelScales?.numel() ?? 0) * sizeof(float));

    /// <summary>Bytes of the dense form.</summary>
    public long DenseBytes => (long)BatchSize * NumKvHeads * Tokens * HeadDim * TensorAccess.ElementBytes(DType);

    /// <summary>Prunes each row to its <paramref name="kept"/> channels of largest magnitude, or by another pattern, and compresses it.</summary>
    /// <param name="tensor">Float32, Float16 or BFloat16 [batch, num_kv_heads, tokens, head_dim]; head_dim 64, 80, 96, 128 or 256.</param>
    /// <param name="kept">Number of channels to keep of each row, 1 to head_dim. Among equal magnitudes the lower channel is kept; NaN
    /// counts as larger than any number.</param>
    /// <param name="pattern">The rule; <paramref name="kept"/> is 5, 6, 7 or 8 sixteenths of head_dim for balanced patterns, which exist
    /// for head_dim 64, 128 and 256. <see cref="SparsityPattern.All"/> keeps head_dim channels.</param>
    /// <param name="bits">Bits of a stored value: 16 for unquantised values, 8 or 4 for integers with a Float16 scale per row. In integers,
    /// a row with an infinity or a NaN becomes NaN as a whole.</param>
    /// <param name="channelScales">Positive numbers by which the channels of keys are divided before they become integers, Float32
    /// [batch, num_kv_heads, head_dim], such as <see cref="MustafarOps.KeyChannelScales"/>; null for none.</param>
    /// <param name="importance">Factors of the magnitudes before they are compared, as in <see cref="MustafarOps.PruneMask"/>; null for
    /// ones. The stored values are not multiplied.</param>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit, or there are channel scales with values of 16
    /// bits.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="kept"/> or <paramref name="bits"/> is out of range.</exception>
    /// <exception cref="NotSupportedException">The head_dim, the device, or this <paramref name="kept"/> with the pattern is not
    /// supported.</exception>
    public static BitmapTensor Compress(
        Tensor tensor, int kept, SparsityPattern pattern = SparsityPattern.Unstructured, int bits = 16, Tensor? channelScales = null,
        Tensor? importance = null)
    {
        NativeFormat format = MustafarOps.Format(tensor, nameof(tensor), kept, pattern, bits);
        CheckScales(tensor, channelScales, bits);
        MustafarOps.CheckImportance(tensor, importance, pattern);
        long[] shape = tensor.shape;
        long bytes;
        NativeCall.Check(NativeMethods.BlockBytes(&format, &bytes));
        bytes = checked((shape[0] * shape[1] * Blocks(shape[2]) * bytes) + NativeConstants.PagePadding);
        return Filled(new BitmapTensor(tensor, format, bits, channelScales, offsets: null, bytes), tensor, bitmap: null, importance);
    }

    /// <summary>Compresses the channels that a mask selects, any number in each row.</summary>
    /// <param name="tensor">Float32, Float16 or BFloat16 [batch, num_kv_heads, tokens, head_dim]; head_dim 64, 80, 96, 128 or 256.</param>
    /// <param name="mask">Bool, of the same shape and device; true where a channel is kept.</param>
    /// <param name="bits">Bits of a stored value, as in <see cref="Compress"/>.</param>
    /// <param name="channelScales">Channel scales of keys, as in <see cref="Compress"/>.</param>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit, or there are channel scales with values of 16
    /// bits.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="bits"/> is out of range.</exception>
    /// <exception cref="NotSupportedException">The head_dim or the device is not supported.</exception>
    public static BitmapTensor CompressMasked(Tensor tensor, Tensor mask, int bits = 16, Tensor? channelScales = null)
    {
        NativeFormat format = MustafarOps.Format(tensor, nameof(tensor), kept: null, bits: bits);
        CheckScales(tensor, channelScales, bits);
        long[] shape = tensor.shape;
        TensorAccess.Validate(mask, nameof(mask), ScalarType.Bool, tensor.device, shape);
        using Tensor bitmap = MustafarOps.PackMask(mask);
        NativeContext context = TensorAccess.Context(tensor.device);
        BackendArray<uint> offsets = new(checked((int)((shape[0] * shape[1] * Blocks(shape[2])) + 1)), tensor.device);
        using BackendArray<long> bytes = new(1, tensor.device);
        int status = NativeMethods.Offsets(
            &context, &format, (int)shape[0], (int)shape[1], shape[2], (uint*)TensorAccess.Pointer(bitmap), offsets.Pointer, bytes.Pointer);
        if (status != (int)Status.Ok)
        {
            offsets.Dispose();
        }

        NativeCall.Check(status);
        bytes.Download();
        return Filled(new BitmapTensor(tensor, format, bits, channelScales, offsets, bytes.Span[0]), tensor, bitmap, importance: null);
    }

    /// <summary>The dense tensor [batch, num_kv_heads, tokens, head_dim], zero where a channel was pruned.</summary>
    /// <exception cref="ObjectDisposedException">The tensor was disposed.</exception>
    /// <exception cref="InvalidDataException">The compressed data is damaged.</exception>
    public Tensor Decompress()
    {
        using Use use = new(this);
        using DisposeScope scope = NewDisposeScope();
        Tensor dense = empty([BatchSize, NumKvHeads, Tokens, HeadDim], dtype: DType, device: Device);
        NativeContext context = TensorAccess.Context(Device);
        NativeBlocks blocks = Native;
        NativeDense destination = TensorAccess.Dense(dense);
        NativeCall.Check(NativeMethods.Decompress(&context, BatchSize, NumKvHeads, 0, Tokens, &blocks, ChannelScales, &destination));
        return dense.MoveToOuterDisposeScope();
    }

    /// <summary>Key scores, with this tensor as the keys: scale · query · Kᵀ. (Mustafar, section 4: the key product.)</summary>
    /// <param name="query">[batch, num_heads, queries, head_dim] in this tensor's type; num_heads is a multiple of num_kv_heads.</param>
    /// <param name="scale">Factor of the result.</param>
    /// <returns>Float32 [batch, num_heads, queries, tokens].</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit.</exception>
    /// <exception cref="ObjectDisposedException">The tensor was disposed.</exception>
    public Tensor KeyScores(Tensor query, double scale = 1) => Multiply(query, nameof(query), asKeys: true, scale);

    /// <summary>Value sum, with this tensor as the values: scale · weights · V. (Mustafar, section 4: the value product.)</summary>
    /// <param name="weights">Float32 [batch, num_heads, queries, tokens], such as softmax probabilities.</param>
    /// <param name="scale">Factor of the result.</param>
    /// <returns>[batch, num_heads, queries, head_dim] in this tensor's type.</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit.</exception>
    /// <exception cref="ObjectDisposedException">The tensor was disposed.</exception>
    /// <exception cref="InvalidOperationException">The tensor has channel scales, which only keys have.</exception>
    public Tensor ValueSum(Tensor weights, double scale = 1) => HasChannelScales
        ? throw new InvalidOperationException("Expected values without channel scales, but this tensor was compressed as keys with channel scales.")
        : Multiply(weights, nameof(weights), asKeys: false, scale);

    /// <summary>Frees the storage.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0)
        {
            SpinWait wait = default;
            while (Volatile.Read(ref _users) != 0)
            {
                wait.SpinOnce();
            }

            _storage.Dispose();
            _slab.Dispose();
            _pages.Dispose();
            _offsets?.Dispose();
            _channelScales?.Dispose();
        }
    }

    /// <summary>Address of the channel scales, null if there are none; valid during a <see cref="Use"/>.</summary>
    internal float* ChannelScales => _channelScales is null ? null : (float*)TensorAccess.Pointer(_channelScales);

    /// <summary>The storage as the native library sees it; valid during a <see cref="Use"/>.</summary>
    internal NativeBlocks Native
    {
        get
        {
            long blocks = Blocks(Tokens);
            bool isFixed = _offsets is null;
            return new NativeBlocks
            {
                Format = _format,
                PageBlocks = checked((int)Math.Max(1, blocks)),
                SlabPages = isFixed ? Math.Max(1, BatchSize) : 1,
                SlabCount = blocks == 0 || BatchSize == 0 ? 0 : 1,
                PageCapacity = 1,
                PageBytes = isFixed ? NumKvHeads * _headBytes : 0,
                HeadStride = _headBytes,
                SlabBytes = _bytes,
                Slabs = (void**)_slab.Pointer,
                Pages = _pages.Pointer,
                Offsets = _offsets is null ? null : _offsets.Pointer,
            };
        }
    }

    private static long Blocks(long tokens) => (tokens + NativeConstants.BlockTokens - 1) / NativeConstants.BlockTokens;

    private static BitmapTensor Filled(BitmapTensor target, Tensor source, Tensor? bitmap, Tensor? importance)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor rows = TensorAccess.WithContiguousRows(source);
        importance = importance?.contiguous();
        NativeContext context = TensorAccess.Context(target.Device);
        NativeBlocks blocks = target.Native;
        NativeDense dense = TensorAccess.Dense(rows);
        int status = NativeMethods.Compress(
            &context, target.BatchSize, target.NumKvHeads, target.Tokens, &dense,
            bitmap is null ? null : (uint*)TensorAccess.Pointer(bitmap), TensorAccess.Floats(importance), target.ChannelScales, &blocks);
        GC.KeepAlive(rows);
        GC.KeepAlive(bitmap);
        GC.KeepAlive(importance);
        if (status != (int)Status.Ok)
        {
            target.Dispose();
        }

        NativeCall.Check(status);
        return target;
    }

    private static void CheckScales(Tensor tensor, Tensor? channelScales, int bits)
    {
        if (channelScales is null)
        {
            return;
        }

        if (bits == 16)
        {
            throw new ArgumentException("Expected no channel scales for values of 16 bits, since only integers have scales.", nameof(channelScales));
        }

        long[] shape = tensor.shape;
        TensorAccess.Validate(channelScales, nameof(channelScales), ScalarType.Float32, tensor.device, shape[0], shape[1], shape[3]);
    }

    private void ValidateHeads(Tensor tensor, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.dim() != 4 || tensor.shape[1] == 0 || tensor.shape[1] % NumKvHeads != 0)
        {
            throw new ArgumentException(
                $"Expected four dimensions with a multiple of {NumKvHeads} heads in the second, but got [{string.Join(", ", tensor.shape)}].",
                name);
        }
    }

    // Queries with the keys, or weights with the values.
    private Tensor Multiply(Tensor factor, string name, bool asKeys, double scale)
    {
        using Use use = new(this);
        ValidateHeads(factor, name);
        long[] shape = factor.shape;
        (ScalarType Type, long Width) dense = (DType, HeadDim), weights = (ScalarType.Float32, Tokens);
        (ScalarType type, long width) = asKeys ? dense : weights;
        TensorAccess.Validate(factor, name, type, Device, BatchSize, shape[1], shape[2], width);
        using DisposeScope scope = NewDisposeScope();
        (type, width) = asKeys ? weights : dense;
        Tensor result = empty([BatchSize, shape[1], shape[2], width], dtype: type, device: Device);
        Tensor rows = TensorAccess.WithContiguousRows(factor);
        NativeProduct product = asKeys ? Product(shape, rows, result, scale) : Product(shape, result, rows, scale);
        NativeContext context = TensorAccess.Context(Device);
        NativeCall.Check(asKeys ? NativeMethods.KeyScores(&context, &product) : NativeMethods.ValueSum(&context, &product));
        GC.KeepAlive(rows);
        return result.MoveToOuterDisposeScope();
    }

    private NativeProduct Product(long[] shape, Tensor dense, Tensor weights, double scale) => new()
    {
        Batch = BatchSize,
        NumHeads = checked((int)shape[1]),
        NumKvHeads = NumKvHeads,
        NumQueries = checked((int)shape[2]),
        Tokens = Tokens,
        Blocks = Native,
        Dense = TensorAccess.Dense(dense),
        Weights = TensorAccess.Dense(weights),
        Scale = (float)scale,
        KeyFactors = ChannelScales,
    };

    /// <summary>A call that reads the storage, which is neither freed nor collected until the call ends.</summary>
    internal readonly ref struct Use
    {
        private readonly BitmapTensor _tensor;

        /// <exception cref="ObjectDisposedException">The tensor was disposed.</exception>
        internal Use(BitmapTensor tensor)
        {
            // In this order, and in reverse in Dispose: one of the two sees the other.
            Interlocked.Increment(ref tensor._users);
            if (Volatile.Read(ref tensor._disposed) != 0)
            {
                Interlocked.Decrement(ref tensor._users);
                throw new ObjectDisposedException(nameof(BitmapTensor));
            }

            _tensor = tensor;
        }

        public void Dispose() => Interlocked.Decrement(ref _tensor._users);
    }
}
