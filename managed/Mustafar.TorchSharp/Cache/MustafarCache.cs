using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// The keys and values of one attention layer, pruned per token by magnitude and compressed to a bitmap and packed values, with a
/// dense recent window. Attention runs directly on the compressed form.
/// </summary>
/// <remarks>
/// <para>
/// With n tokens in a sequence, the first ⌊(n − <see cref="MustafarOptions.LocalWindow"/>) / <see cref="MustafarOptions.GroupSize"/>⌋
/// groups are compressed and the other tokens dense. (Mustafar, NeurIPS 2025, arXiv 2505.22913, sections 3 and 4.)
/// <see cref="MustafarOptions.SinkTokens"/> come before all groups and are not counted.
/// </para>
/// <para>
/// Compressed tokens are stored in pages of one group. Memory grows page by page while sequences are short, later by slabs of 8 pages, to
/// which the first pages are moved once. The ring of dense tokens grows in the same way, on the CPU token by token while it is small. With
/// the default options, a cache of 64 or more tokens on the CPU takes no more than a dense cache of its data type. On CUDA the ring grows
/// by 32 tokens, so that graphs are rarely captured again; there this holds from 96 tokens on. A fork has slabs of 8 pages from the start.
/// </para>
/// <para>
/// Only one thread at a time may use a cache; a second one gets an <see cref="InvalidOperationException"/>. As with every
/// <see cref="KeyValueCache"/>, any thread may read sizes and call <see cref="KeyValueCache.Dispose()"/>. Forks are separate caches:
/// each may be used on another thread.
/// </para>
/// <para>
/// A cache that is dropped without <see cref="KeyValueCache.Dispose()"/> returns its pages to its forks when it is collected.
/// </para>
/// </remarks>
/// <example>
/// <code>
/// KeyValueShape shape = new() { NumKvHeads = 2, HeadDim = 64 };
/// MustafarOptions options = new() { KeySparsity = 0.5, ValueSparsity = 0.7 };
/// using MustafarCache cache = new(batchSize: 1, shape, ScalarType.Float32, CPU, options);
///
/// // A prompt of 300 tokens, then one token. Here 4 query heads share 2 KV heads.
/// Tensor prompt = cache.Forward(query: randn(1, 4, 300, 64), keys: randn(1, 2, 300, 64), values: randn(1, 2, 300, 64));
/// Tensor next = cache.Forward(query: randn(1, 4, 1, 64), keys: randn(1, 2, 1, 64), values: randn(1, 2, 1, 64));
/// Console.WriteLine($"{cache.Length} tokens, {cache.Memory}");
/// </code>
/// </example>
public sealed class MustafarCache : KeyValueCache
{
    private readonly int[] _slots; // of the sequences: all that there are
    private readonly CompressedStore _store;
    private readonly SequenceLengths _lengths;

    /// <summary>Makes an empty cache.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    /// <param name="shape">KV heads and head_dim, which is 64, 80, 96, 128 or 256.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live; the CPU if null.</param>
    /// <param name="options">Sparsity, bits, recent window and group; the defaults if null.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="batchSize"/> is not positive.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type, or options contradict each other.</exception>
    /// <exception cref="NotSupportedException">The head_dim or the device is not supported, or not with these patterns and
    /// bits.</exception>
    public MustafarCache(
        int batchSize, KeyValueShape shape, ScalarType dtype, torch.Device? device = null, MustafarOptions? options = null)
        : this(batchSize, shape, dtype, device, options, family: null)
    {
    }

    // family: the store whose pages this cache may share.
    private MustafarCache(
        int batchSize, KeyValueShape shape, ScalarType dtype, torch.Device? device, MustafarOptions? options, CompressedStore? family)
        : base(batchSize, shape, dtype, TensorAccess.Resolve(device ?? CPU))
    {
        if (options?.Eviction is not null)
        {
            throw new NotSupportedException(
                $"{nameof(MustafarOptions)}.{nameof(MustafarOptions.Eviction)} needs a {nameof(MustafarModelCache)}, which tracks lengths and positions separately.");
        }

        _store = new CompressedStore(Shape, [options ?? new MustafarOptions()], new CacheLimits { MaxSequences = batchSize }, family, family?.Ring);
        _slots = [.. Enumerable.Range(0, batchSize)];
        Array.ForEach(_slots, _store.Table.Add);
        _lengths = new SequenceLengths(_store.Table);
    }

    /// <summary>Sparsity, bits, recent window and group.</summary>
    public MustafarOptions Options => Layer.Options;

    /// <inheritdoc/>
    public override IReadOnlyList<int> Lengths => _lengths;

    /// <summary>How many of each sequence's first tokens are compressed, not counting its attention sinks.</summary>
    public IReadOnlyList<int> CompressedLengths => [.. _store.Table.InUse.Select(sequence => sequence.Compressed)];

    /// <inheritdoc/>
    /// <remarks>Forks share one pool of pages. Each counts an equal part of it, so that their sum is what they take together.</remarks>
    public override KeyValueCacheMemory Memory
    {
        get
        {
            ThrowIfDisposed();
            return _store.Memory;
        }
    }

    /// <inheritdoc/>
    /// <remarks>
    /// The new tokens attend densely to each other, and to the past as it is stored. Before that, the groups that become compressible with
    /// the first new token are compressed; afterwards, those that are compressible at the final length. For one token this equals
    /// <see cref="Append"/> followed by <see cref="Attend"/>; for a prompt it is dense attention, then compression.
    /// </remarks>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override Tensor Forward(
        Tensor query, Tensor keys, Tensor values, double? scale = null, ReadOnlySpan<int> counts = default)
    {
        ValidateForward(query, keys, values, scale, counts);
        CompressedStore.CheckScale(scale);
        using CallGuard.Call call = Guard.Enter();
        _store.Begin(_slots, checked((int)keys.size(2)), counts, StepKind.Forward);
        Tensor output;
        try
        {
            output = _store.Forward(0, query, keys, values, scale, rotation: null, isLast: true);
        }
        catch
        {
            _store.Rollback();
            throw;
        }

        _store.Commit();
        return output;
    }

    /// <summary>Adds new tokens and compresses the groups that have left the recent window. Compressed tokens are neither read nor
    /// moved.</summary>
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
        using CallGuard.Call call = Guard.Enter();
        _store.Append(_slots, keys, values, counts);
    }

    /// <summary>Attention of queries at the last n cached tokens: query i of n sees the tokens up to its own.</summary>
    /// <param name="query">Queries [batch, num_heads, n, head_dim]; head h reads KV head h / (num_heads / num_kv_heads).</param>
    /// <param name="scale">Factor of the scores before softmax; 1/√head_dim if null.</param>
    /// <returns>Output [batch, num_heads, n, head_dim]; zero where a query sees no token, as in an empty sequence.</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using the cache, or tokens that the first query would see have left
    /// the sliding window.</exception>
    public Tensor Attend(Tensor query, double? scale = null)
    {
        ThrowIfDisposed();
        ValidateQuery(query, scale);
        CompressedStore.CheckScale(scale);
        using CallGuard.Call call = Guard.Enter();
        foreach (int slot in _slots)
        {
            _store.Table.Rules.CheckQueries(_store.Table[slot], query.size(2), slot);
        }

        using DisposeScope scope = NewDisposeScope();
        _store.Begin(_slots, checked((int)query.size(2)), default, StepKind.Attend);
        return Layer.AttendStored(_store.Plan, query, scale).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    /// <remarks>
    /// Groups that are no longer compressible return to the recent window with the values they were stored with: what was pruned stays
    /// pruned. With a sliding window, tokens that have left it are gone; a sequence can always drop at least
    /// <see cref="MustafarOptions.GroupSize"/> tokens, and can always be emptied.
    /// </remarks>
    /// <exception cref="InvalidOperationException">Another thread is using the cache, or tokens that the next one would see have left
    /// the sliding window.</exception>
    public override void Truncate(int length)
    {
        using CallGuard.Call call = Guard.Enter();
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

        _store.Shorten(_slots, lengths, _slots);
    }

    /// <summary>Shortens each sequence to its own number of first tokens.</summary>
    /// <param name="lengths">Tokens to leave, 0 to the sequence's length, for each sequence.</param>
    /// <exception cref="ArgumentException">There is not one length for each sequence, or one is out of range.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using the cache, or tokens that the next one would see have left
    /// the sliding window.</exception>
    public void Truncate(ReadOnlySpan<int> lengths)
    {
        using CallGuard.Call call = Guard.Enter();
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

        _store.Shorten(_slots, lengths, _slots);
    }

    /// <inheritdoc/>
    /// <remarks>The pages are kept for later tokens.</remarks>
    public override void Clear() => Truncate(0);

    /// <inheritdoc/>
    /// <remarks>
    /// Pages are shared and only the recent window is copied: a page is full when it is written and never changes. Forks may be used on
    /// different threads; on a CUDA device they must use one stream.
    /// </remarks>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override MustafarCache Fork(ReadOnlySpan<int> parents)
    {
        ThrowIfDisposed();
        ValidateParents(parents);
        using CallGuard.Call call = Guard.Enter();
        MustafarCache fork = new(parents.Length, KeyValueShape, DType, Device, Options, family: _store);
        try
        {
            for (int b = 0; b < parents.Length; b++)
            {
                fork._store.Continue(b, _store, parents[b]);
            }

            return fork;
        }
        catch
        {
            fork.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        // The finalizer of the table releases the pages of a cache that was dropped.
        if (disposing)
        {
            _store.Dispose();
        }
    }

    /// <inheritdoc cref="LayerStorage.ConvertsPages"/>
    internal bool ConvertsPages
    {
        get => Layer.ConvertsPages;
        set => Layer.ConvertsPages = value;
    }

    /// <summary>The single layer, as stored in a file.</summary>
    internal StoredLayer Stored => new(_store, 0, _slots);

    /// <summary>Keeps other threads out until it is disposed.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    internal IDisposable Claim() => Guard.Enter();

    /// <summary>Addresses of a sequence's pages, for tests.</summary>
    internal nint[] PageAddresses(int sequence) =>
        [.. _store.Table[sequence].Pages.Select(page => _store.Table.Pool.Address(page))];

    private LayerStorage Layer => _store.Layers[0];
}
