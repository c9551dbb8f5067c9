using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// The keys and values that one attention layer has seen, and the attention over them.
/// </summary>
/// <remarks>
/// An attention module hands each step's queries, keys and values to <see cref="Forward"/> and gets the attention's output.
/// How the past is stored (dense, or pruned and compressed) is the business of the derived class, so one module serves all.
/// A cache is used by one thread at a time; those of this library give a second one an <see cref="InvalidOperationException"/>.
/// <see cref="Lengths"/>, <see cref="Length"/> and <see cref="Memory"/> may be read by any thread: during a call of another one they
/// show sequences before or after it, or some of each. <see cref="Dispose()"/> may be called by any thread, and waits for such a call.
/// </remarks>
public abstract class KeyValueCache : IDisposable
{
    private int _disposed;
    private int _busy;

    /// <summary>Describes an empty cache.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    /// <param name="numKvHeads">Number of key/value heads; a divisor of the number of query heads.</param>
    /// <param name="headDim">Elements of one head's key, and of its value.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is not positive.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type.</exception>
    protected KeyValueCache(int batchSize, int numKvHeads, int headDim, ScalarType dtype, Device device)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(batchSize);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(numKvHeads);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(headDim);
        ArgumentNullException.ThrowIfNull(device);
        if (dtype is not (ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
        {
            throw new ArgumentException($"A cache holds Float32, Float16 or BFloat16, not {dtype}.", nameof(dtype));
        }

        BatchSize = batchSize;
        NumKvHeads = numKvHeads;
        HeadDim = headDim;
        DType = dtype;
        Device = device;
    }

    /// <summary>Number of sequences.</summary>
    public int BatchSize { get; }

    /// <summary>Number of key/value heads.</summary>
    public int NumKvHeads { get; }

    /// <summary>Elements of one head's key, and of its value.</summary>
    public int HeadDim { get; }

    /// <summary>Type of keys, values and queries.</summary>
    public ScalarType DType { get; }

    /// <summary>Where keys and values live.</summary>
    public Device Device { get; }

    /// <summary>Number of cached tokens of each sequence.</summary>
    public abstract IReadOnlyList<int> Lengths { get; }

    /// <summary>Number of cached tokens of the longest sequence.</summary>
    public int Length
    {
        get
        {
            IReadOnlyList<int> lengths = Lengths;
            int longest = 0;
            for (int i = 0; i < lengths.Count; i++)
            {
                longest = Math.Max(longest, lengths[i]);
            }

            return longest;
        }
    }

    /// <summary>What the cache occupies.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public abstract KeyValueCacheMemory Memory { get; }

    /// <summary>
    /// Adds n new tokens and returns their attention: each sees all earlier tokens of its sequence and itself.
    /// </summary>
    /// <param name="query">Queries [batch, num_heads, n, head_dim]; head h reads key/value head h / (num_heads / num_kv_heads).
    /// Positions must already be encoded, in the keys as well.</param>
    /// <param name="keys">Keys of the new tokens [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="values">Values of the new tokens [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="scale">Factor of the scores before softmax; 1/√head_dim if null.</param>
    /// <param name="counts">How many of the n tokens belong to each sequence (the rest is padding on the right and is not cached);
    /// all n if empty.</param>
    /// <returns>Output [batch, num_heads, n, head_dim] in the type of the queries; zero at padding.</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit the cache; the cache is unchanged, as it is whatever else
    /// fails.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public abstract Tensor Forward(
        Tensor query, Tensor keys, Tensor values, double? scale = null, ReadOnlySpan<int> counts = default);

    /// <summary>Shortens every sequence that is longer than <paramref name="length"/> to its first tokens.</summary>
    /// <param name="length">Tokens to leave at most.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="length"/> is negative or more than <see cref="Length"/>.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public abstract void Truncate(int length);

    /// <summary>Forgets all tokens.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public abstract void Clear();

    /// <summary>Makes a cache whose sequences continue sequences of this one, for beams or several answers to one prompt.</summary>
    /// <param name="parents">For each sequence of the new cache the one that it continues; one may occur several times.</param>
    /// <returns>A cache of as many sequences as there are parents, independent of this one, for the caller to dispose.</returns>
    /// <exception cref="ArgumentException">There are no parents, or one is not a sequence of this cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="NotSupportedException">This kind of cache can't be forked.</exception>
    public virtual KeyValueCache Fork(ReadOnlySpan<int> parents) =>
        throw new NotSupportedException($"{GetType().Name} can't be forked.");

    /// <summary>Checks the argument of <see cref="Fork"/>.</summary>
    /// <exception cref="ArgumentException">There are no parents, or one is not a sequence of this cache.</exception>
    protected void ValidateParents(ReadOnlySpan<int> parents)
    {
        if (parents.IsEmpty)
        {
            throw new ArgumentException("Expected a parent for each sequence, but got none.", nameof(parents));
        }

        foreach (int parent in parents)
        {
            if (parent < 0 || parent >= BatchSize)
            {
                throw new ArgumentOutOfRangeException(nameof(parents), parent, $"Expected sequences 0 to {BatchSize - 1}.");
            }
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0)
        {
            // A call that another thread is in comes to its end first; none begins after it.
            SpinWait wait = default;
            while (Interlocked.Exchange(ref _busy, 1) != 0)
            {
                wait.SpinOnce();
            }

            Dispose(disposing: true);
            GC.SuppressFinalize(this);
        }
    }

    /// <summary>Whether <see cref="Dispose()"/> was called.</summary>
    protected bool IsDisposed => Volatile.Read(ref _disposed) != 0;

    /// <summary>Frees the storage. Called once.</summary>
    /// <param name="disposing">False when called from a finaliser.</param>
    protected abstract void Dispose(bool disposing);

    /// <summary>Throws if the cache was disposed.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    protected void ThrowIfDisposed() => ObjectDisposedException.ThrowIf(IsDisposed, this);

    /// <summary>Begins a call. What depends on the tokens is checked after it: until then another thread may change them.</summary>
    private protected void Enter()
    {
        if (Interlocked.Exchange(ref _busy, 1) != 0)
        {
            ThrowIfDisposed();
            throw new InvalidOperationException("The cache is in use by another thread; a cache serves one thread at a time.");
        }
    }

    /// <summary>Ends the call.</summary>
    private protected void Leave() => Volatile.Write(ref _busy, 0);

    /// <summary>Checks the arguments of <see cref="Forward"/>.</summary>
    /// <exception cref="ArgumentException">An argument doesn't fit the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    protected void ValidateForward(Tensor query, Tensor keys, Tensor values, double? scale, ReadOnlySpan<int> counts)
    {
        ThrowIfDisposed();
        ValidateNewTokens(keys, values, counts);
        ValidateQuery(query, scale);
        if (query.size(2) != keys.size(2))
        {
            throw new ArgumentException(
                $"Expected one query per new token: {keys.size(2)} keys came with {query.size(2)} queries.", nameof(query));
        }
    }

    /// <summary>Checks keys and values of new tokens [batch, num_kv_heads, n, head_dim], and how many of them are real.</summary>
    /// <exception cref="ArgumentException">An argument doesn't fit the cache.</exception>
    protected void ValidateNewTokens(Tensor keys, Tensor values, ReadOnlySpan<int> counts)
    {
        ValidateTensor(keys, nameof(keys));
        ValidateTensor(values, nameof(values));
        ValidateShape(keys, nameof(keys), NumKvHeads);
        ValidateShape(values, nameof(values), NumKvHeads);
        long tokens = keys.size(2);
        if (values.size(2) != tokens)
        {
            throw new ArgumentException(
                $"Expected values of {tokens} tokens, as many as there are keys, but got {values.size(2)}.", nameof(values));
        }

        if (counts.IsEmpty)
        {
            return;
        }

        if (counts.Length != BatchSize)
        {
            throw new ArgumentException($"Expected one count for each of {BatchSize} sequences, but got {counts.Length}.", nameof(counts));
        }

        for (int i = 0; i < counts.Length; i++)
        {
            if (counts[i] < 0 || counts[i] > tokens)
            {
                throw new ArgumentOutOfRangeException(
                    nameof(counts), counts[i], $"Sequence {i} must have 0 to {tokens} of the new tokens.");
            }
        }
    }

    /// <summary>Checks queries [batch, num_heads, n, head_dim] and their scale.</summary>
    /// <exception cref="ArgumentException">An argument doesn't fit the cache.</exception>
    protected void ValidateQuery(Tensor query, double? scale)
    {
        ValidateTensor(query, nameof(query));
        ValidateShape(query, nameof(query), heads: null);
        if (query.size(1) == 0 || query.size(1) % NumKvHeads != 0)
        {
            throw new ArgumentException(
                $"Expected a multiple of {NumKvHeads} query heads, the number of key/value heads, but got {query.size(1)}.", nameof(query));
        }

        if (scale is double factor && !double.IsFinite(factor))
        {
            throw new ArgumentOutOfRangeException(nameof(scale), factor, "The scale of the scores must be finite.");
        }
    }

    private void ValidateTensor(Tensor tensor, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.dtype != DType)
        {
            throw new ArgumentException($"Expected {DType}, the type of the cache, but got {tensor.dtype}.", name);
        }

        if (tensor.device_type != Device.type || (Device.index >= 0 && tensor.device_index != Device.index))
        {
            throw new ArgumentException($"Expected a tensor on {Device}, where the cache is, but got one on {tensor.device}.", name);
        }

        if (tensor.is_sparse)
        {
            throw new ArgumentException("Expected a strided tensor, but got a sparse one.", name);
        }
    }

    private void ValidateShape(Tensor tensor, string name, int? heads)
    {
        if (tensor.dim() != 4 || tensor.size(0) != BatchSize || (heads is int count && tensor.size(1) != count) || tensor.size(2) == 0
            || tensor.size(3) != HeadDim)
        {
            string headsText = heads?.ToString(System.Globalization.CultureInfo.InvariantCulture) ?? "heads";
            throw new ArgumentException(
                $"Expected shape [{BatchSize}, {headsText}, tokens > 0, {HeadDim}], but got [{string.Join(", ", tensor.shape)}].", name);
        }
    }

    /// <summary>A call: it refuses a second thread, and keeps the cache from being disposed or collected, for as long as it lives.</summary>
    private protected readonly ref struct Use
    {
        private readonly KeyValueCache _cache;

        internal Use(KeyValueCache cache)
        {
            _cache = cache;
            cache.Enter();
        }

        public void Dispose() => _cache.Leave();
    }
}
