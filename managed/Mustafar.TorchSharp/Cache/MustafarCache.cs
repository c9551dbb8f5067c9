using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// The keys and values of one attention layer, pruned per token by magnitude and compressed to a bitmap and packed values, with a
/// dense window of the most recent tokens. Attention is computed on the compressed form directly.
/// </summary>
/// <remarks>
/// <para>
/// With n tokens in a sequence the first ⌊(n − <see cref="MustafarOptions.LocalWindow"/>) / <see cref="MustafarOptions.GroupSize"/>⌋
/// groups are compressed, the others dense. (Mustafar, NeurIPS 2025, arXiv 2505.22913, sections 3 and 4.)
/// <see cref="MustafarOptions.SinkTokens"/> come before all groups and do not count.
/// </para>
/// <para>
/// Compressed tokens lie in pages of one group, which are written once and never moved; memory grows by slabs of 8 pages, which short
/// sequences share.
/// </para>
/// <para>
/// A cache is used by one thread at a time; a second one gets an <see cref="InvalidOperationException"/>. As of every
/// <see cref="KeyValueCache"/>, sizes and <see cref="KeyValueCache.Dispose()"/> are safe from any thread. Forks are caches of their own:
/// each may be used by another thread.
/// </para>
/// <para>
/// A cache that is dropped without <see cref="KeyValueCache.Dispose()"/> returns its pages to its forks when it is collected.
/// </para>
/// </remarks>
public sealed unsafe partial class MustafarCache : KeyValueCache
{
    // Up to so many queries at once are attended by the decode kernel; for more, matrix products over expanded segments are faster.
    private const int MostDecodeQueries = 8;
    private const int SegmentTokens = 1024;

    private readonly NativeFormat _keyFormat;
    private readonly NativeFormat _valueFormat;
    private readonly long _keyBlockBytes;
    private readonly long _valueBlockBytes;
    private readonly int _tailCapacity;
    private readonly Tensor _tailKeys;
    private readonly Tensor _tailValues;
    private readonly NativeDense _denseTailKeys;
    private readonly NativeDense _denseTailValues;
    private readonly PagePool _pool;
    private readonly PageTable _pages;
    private readonly SequenceState _state;
    private readonly AttentionSinks? _sinks; // the state and the pages are of the tokens after them
    private readonly SequenceLengths _lengths;
    private readonly BackendArray<int> _counts;
    private readonly BackendArray<int> _lengthsWithFresh;
    private Tensor? _workspace;
    private readonly int[] _pagesAdded;
    private readonly int[] _lengthsBefore;
    private readonly int[] _compressedBefore;

    /// <summary>Makes an empty cache.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    /// <param name="numKvHeads">Number of key/value heads.</param>
    /// <param name="headDim">Elements of one head's key, and of its value: 64, 80, 96, 128 or 256.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live; the CPU if null.</param>
    /// <param name="options">Sparsity, window and group; the defaults if null.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is not positive.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type.</exception>
    /// <exception cref="NotSupportedException">The head_dim or the device is not served, or not with balanced patterns.</exception>
    public MustafarCache(
        int batchSize, int numKvHeads, int headDim, ScalarType dtype, torch.Device? device = null, MustafarOptions? options = null)
        : this(batchSize, numKvHeads, headDim, dtype, device, options, family: null)
    {
    }

    // family: the cache whose pages this one may share.
    private MustafarCache(
        int batchSize, int numKvHeads, int headDim, ScalarType dtype, torch.Device? device, MustafarOptions? options, MustafarCache? family)
        : base(batchSize, numKvHeads, headDim, dtype, TensorAccess.Resolve(device ?? CPU))
    {
        Options = options ?? new MustafarOptions();
        _ = TensorAccess.Context(Device); // a device without a back end is refused here, not at the first token
        _keyFormat = Format(keys: true, Options.KeysKept(headDim));
        _valueFormat = Format(keys: false, Options.ValuesKept(headDim));
        _keyBlockBytes = BlockBytes(_keyFormat);
        _valueBlockBytes = BlockBytes(_valueFormat);
        const int block = NativeConstants.BlockTokens;
        _tailCapacity = ((Options.LocalWindow + block - 1) / block * block) + Options.GroupSize;
        _pages = new PageTable(batchSize, Device);
        _state = new SequenceState(batchSize, Device);
        _sinks = Options.SinkTokens == 0 ? null : new AttentionSinks(Options.SinkTokens, batchSize, numKvHeads, headDim, Device);
        _lengths = new SequenceLengths(_state, _sinks, batchSize);
        _counts = new BackendArray<int>(batchSize, Device);
        _lengthsWithFresh = new BackendArray<int>(batchSize, Device);
        _pagesAdded = new int[batchSize];
        _lengthsBefore = new int[batchSize];
        _compressedBefore = new int[batchSize];
        // A tensor made in inference mode could not be written to outside of it.
        using IDisposable mode = inference_mode(false);
        _tailKeys = zeros([batchSize, numKvHeads, _tailCapacity, headDim], dtype: dtype, device: Device).DetachFromDisposeScope();
        _tailValues = zeros_like(_tailKeys).DetachFromDisposeScope();
        (_denseTailKeys, _denseTailValues) = (TensorAccess.Dense(_tailKeys), TensorAccess.Dense(_tailValues));
        // Last, when nothing can fail any more: an owner that was never made would keep the pages for ever.
        _pool = family?._pool.AddOwner() ?? new PagePool(numKvHeads, PageBlocks * (_keyBlockBytes + _valueBlockBytes), Device);
    }

    /// <summary>Sparsity, window and group.</summary>
    public MustafarOptions Options { get; }

    /// <inheritdoc/>
    public override IReadOnlyList<int> Lengths => _lengths;

    /// <summary>How many of each sequence's first tokens are compressed, not counting the <see cref="MustafarOptions.SinkTokens"/>.</summary>
    public IReadOnlyList<int> CompressedLengths => _state.Compressed.ToArray();

    /// <inheritdoc/>
    /// <remarks>Forks share one pool of pages; each counts an equal part of it, so that their sum is what they occupy together.</remarks>
    public override KeyValueCacheMemory Memory
    {
        get
        {
            ThrowIfDisposed();
            long tokens = 0;
            foreach (int length in _lengths)
            {
                tokens += length;
            }

            long elements = tokens * 2 * NumKvHeads * HeadDim;
            int elementBytes = TensorAccess.ElementBytes(DType);
            return new KeyValueCacheMemory(
                CompressedBytes: _pool.BytesOfOwner + _pages.Bytes,
                WindowBytes: (2L * BatchSize * NumKvHeads * _tailCapacity * HeadDim * elementBytes) + (_sinks?.Bytes ?? 0),
                DenseBytes: elements * elementBytes,
                Fp16Bytes: elements * 2);
        }
    }

    /// <inheritdoc/>
    /// <remarks>
    /// The new tokens see each other dense and the past as it is stored. Before they attend, whatever is due once the first of them has
    /// joined is compressed; afterwards, whatever is due at the final length. For one token this is <see cref="Append"/> followed by
    /// <see cref="Attend"/>; for a prompt it is dense attention, then compression.
    /// </remarks>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override Tensor Forward(
        Tensor query, Tensor keys, Tensor values, double? scale = null, ReadOnlySpan<int> counts = default)
    {
        ValidateForward(query, keys, values, scale, counts);
        ValidateScale(scale);
        using Use use = new(this);
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        keys = TensorAccess.WithContiguousRows(keys);
        values = TensorAccess.WithContiguousRows(values);
        Mark();
        Tensor output;
        try
        {
            output = Step(query, keys, values, scale, counts);
        }
        catch
        {
            GoBack();
            throw;
        }

        ReleasePages();
        return output.MoveToOuterDisposeScope();
    }

    /// <summary>Adds new tokens and compresses what falls due. Nothing that is compressed already is read or moved.</summary>
    /// <param name="keys">Keys [batch, num_kv_heads, n, head_dim], positions encoded.</param>
    /// <param name="values">Values [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="counts">How many of the n tokens belong to each sequence (the rest is padding on the right); all n if empty.</param>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit the cache; the cache is unchanged.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public void Append(Tensor keys, Tensor values, ReadOnlySpan<int> counts = default)
    {
        ThrowIfDisposed();
        ValidateNewTokens(keys, values, counts);
        using Use use = new(this);
        using DisposeScope scope = NewDisposeScope();
        keys = TensorAccess.WithContiguousRows(keys);
        values = TensorAccess.WithContiguousRows(values);
        Mark();
        try
        {
            AppendNew(keys, values, counts);
        }
        catch
        {
            GoBack();
            throw;
        }

        ReleasePages();
    }

    /// <summary>Attention of queries that stand at the last n cached tokens: query i of n sees the tokens up to its own.</summary>
    /// <param name="query">Queries [batch, num_heads, n, head_dim]; head h reads key/value head h / (num_heads / num_kv_heads).</param>
    /// <param name="scale">Factor of the scores before softmax; 1/√head_dim if null.</param>
    /// <returns>Output [batch, num_heads, n, head_dim]; zero where a query sees no token, as in an empty sequence.</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using the cache, or tokens that the first query would see fell out
    /// of the sliding window.</exception>
    public Tensor Attend(Tensor query, double? scale = null)
    {
        ThrowIfDisposed();
        ValidateQuery(query, scale);
        ValidateScale(scale);
        using Use use = new(this);
        CheckWindow(query.size(2));
        using DisposeScope scope = NewDisposeScope();
        return AttendTokens(query, null, null, scale, default).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    /// <remarks>
    /// Groups that are no longer due to be compressed return to the dense window as they were stored: what was pruned stays pruned.
    /// With a sliding window, tokens that fell out of it are gone: a sequence can go back by <see cref="MustafarOptions.GroupSize"/>
    /// tokens at least, and to 0.
    /// </remarks>
    /// <exception cref="InvalidOperationException">Another thread is using the cache, or tokens that the next one would see fell out of
    /// the sliding window.</exception>
    public override void Truncate(int length)
    {
        using Use use = new(this);
        int longest = Length;
        if (length < 0 || length > longest)
        {
            throw new ArgumentOutOfRangeException(nameof(length), length, $"Expected 0 to {longest}, the length of the longest sequence.");
        }

        int[] lengths = new int[BatchSize];
        for (int b = 0; b < BatchSize; b++)
        {
            lengths[b] = Math.Min(_lengths[b], length);
        }

        ShortenTo(lengths);
    }

    /// <summary>Shortens each sequence to its own number of first tokens.</summary>
    /// <param name="lengths">Tokens to leave, 0 to the sequence's length, for each sequence.</param>
    /// <exception cref="ArgumentException">There is not one length for each sequence, or one is out of range.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using the cache, or tokens that the next one would see fell out of
    /// the sliding window.</exception>
    public void Truncate(ReadOnlySpan<int> lengths)
    {
        using Use use = new(this);
        if (lengths.Length != BatchSize)
        {
            throw new ArgumentException($"Expected one length for each of {BatchSize} sequences, but got {lengths.Length}.", nameof(lengths));
        }

        for (int b = 0; b < BatchSize; b++)
        {
            if (lengths[b] < 0 || lengths[b] > _lengths[b])
            {
                throw new ArgumentOutOfRangeException(
                    nameof(lengths), lengths[b], $"Sequence {b} can be shortened to 0 to {_lengths[b]} tokens.");
            }
        }

        ShortenTo(lengths);
    }

    /// <inheritdoc/>
    /// <remarks>The pages are kept for the tokens to come.</remarks>
    public override void Clear() => Truncate(0);

    /// <summary>Gives the pages of a cache that was dropped back to its forks.</summary>
    ~MustafarCache() => Dispose(disposing: false);

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (!disposing)
        {
            // Null if the constructor failed. The tensors have finalizers of their own.
            _pool?.Abandon([.. Enumerable.Range(0, BatchSize).SelectMany(_pages.Pages)]);
        }
        else
        {
            _tailKeys.Dispose();
            _tailValues.Dispose();
            _sinks?.Dispose();
            _workspace?.Dispose();
            for (int b = 0; b < BatchSize; b++)
            {
                ReturnPages(b, compressed: 0);
            }

            _pool.Dispose();
            _pages.Dispose();
            _state.Dispose();
            _counts.Dispose();
            _lengthsWithFresh.Dispose();
        }
    }

    /// <summary>Addresses of a sequence's pages, for tests.</summary>
    internal nint[] PageAddresses(int sequence) => Addresses(_pages.Pages(sequence));

    private int PageBlocks => Options.GroupSize / NativeConstants.BlockTokens;

    private NativeFormat Format(bool keys, int keep) => new()
    {
        HeadDim = HeadDim,
        DType = (int)TensorAccess.DTypeOf(DType),
        Pattern = (int)(!Options.Balanced ? SparsityPattern.Unstructured
            : keys ? SparsityPattern.BalancedKeys : SparsityPattern.BalancedValues),
        Layout = (int)Layout.Fixed,
        Order = (int)TensorAccess.OrderFor(Device, keys),
        Keep = keep,
    };

    private static long BlockBytes(NativeFormat format)
    {
        long bytes;
        NativeCall.Check(NativeMethods.BlockBytes(&format, &bytes));
        return bytes;
    }

    // The compressed keys (or values) of all sequences, or of those from a given one on.
    private NativeBlocks Blocks(bool keys, int firstSequence = 0) => _pool.Place(new NativeBlocks
    {
        Format = keys ? _keyFormat : _valueFormat,
        PageBlocks = PageBlocks,
        PageCapacity = _pages.Capacity,
        Base = keys ? 0 : PageBlocks * _keyBlockBytes, // of each head a page has its keys, then its values
        Pages = _pages.Pointer + (firstSequence * (long)_pages.Capacity),
    });

    // Single precision, in which the library computes, may not hold what double precision does; that must show before a token is added.
    private static void ValidateScale(double? scale)
    {
        if (scale is double factor && !((float)factor is > 0 and < float.PositiveInfinity))
        {
            throw new ArgumentOutOfRangeException(
                nameof(scale), factor, "The scale of the scores must be positive, and finite in single precision.");
        }
    }

    // Padded sequences one by one: what stands in the padding must not reach a token, not even as 0 · NaN.
    private Tensor AttendPrompt(Tensor query, Tensor keys, Tensor values, double? scale, ReadOnlySpan<int> counts)
    {
        if (counts.IndexOfAnyExcept(checked((int)query.size(2))) < 0)
        {
            return DenseAttention.Causal(query, keys, values, scale, Options.SlidingWindow, Options.SinkTokens);
        }

        Tensor output = zeros_like(query);
        for (int b = 0; b < counts.Length; b++)
        {
            if (counts[b] > 0)
            {
                using DisposeScope scope = NewDisposeScope();
                Own(output, b, counts).copy_(DenseAttention.Causal(
                    Own(query, b, counts), Own(keys, b, counts), Own(values, b, counts), scale, Options.SlidingWindow, Options.SinkTokens));
            }
        }

        return output;

        static Tensor Own(Tensor tensor, int sequence, ReadOnlySpan<int> counts) =>
            tensor.narrow(0, sequence, 1).narrow(2, 0, counts[sequence]);
    }
}
