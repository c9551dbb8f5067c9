using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// The keys and values that one attention layer has seen, and attention over them.
/// </summary>
/// <remarks>
/// An attention module passes each step's queries, keys and values to <see cref="Forward"/> and gets the attention's output.
/// The derived class decides how the past is stored (dense, or pruned and compressed), so one module works with all of them.
/// Only one thread at a time may use a cache; this library's caches throw an <see cref="InvalidOperationException"/> on a second one.
/// Any thread may read <see cref="Lengths"/>, <see cref="Length"/> and <see cref="Memory"/>: during another thread's call they show
/// sequences before or after it, or some of each. Any thread may call <see cref="Dispose()"/>, which waits for such a call.
/// </remarks>
public abstract class KeyValueCache : IDisposable
{
    /// <summary>Describes an empty cache.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    /// <param name="shape">KV heads and head_dim.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="batchSize"/> is not positive.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type.</exception>
    protected KeyValueCache(int batchSize, KeyValueShape shape, ScalarType dtype, Device device)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(batchSize);
        Guard = new CallGuard(this);
        Shape = CacheShape.Checked(shape, dtype, device);
        BatchSize = batchSize;
    }

    /// <summary>Number of sequences.</summary>
    public int BatchSize { get; }

    /// <summary>KV heads and head_dim.</summary>
    public KeyValueShape KeyValueShape => Shape.Heads;

    /// <summary>Number of KV heads.</summary>
    public int NumKvHeads => Shape.NumKvHeads;

    /// <summary>Elements of one head's key, and of its value.</summary>
    public int HeadDim => Shape.HeadDim;

    /// <summary>Type of keys, values and queries.</summary>
    public ScalarType DType => Shape.DType;

    /// <summary>Where keys and values live.</summary>
    public Device Device => Shape.Device;

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

    /// <summary>The memory that the cache takes.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public abstract KeyValueCacheMemory Memory { get; }

    /// <summary>
    /// Adds n new tokens and returns their attention: each sees all earlier tokens of its sequence and itself.
    /// </summary>
    /// <param name="query">Queries [batch, num_heads, n, head_dim]; head h reads KV head h / (num_heads / num_kv_heads). Positions must
    /// already be encoded, in the keys as well.</param>
    /// <param name="keys">Keys of the new tokens [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="values">Values of the new tokens [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="scale">Factor of the scores before softmax; 1/√head_dim if null.</param>
    /// <param name="counts">How many of the n tokens belong to each sequence (the rest is padding on the right and is not cached);
    /// all n if empty.</param>
    /// <returns>Output [batch, num_heads, n, head_dim] in the type of the queries; zero at padding. It has no gradient, whether the
    /// arguments require one or not: caches are for inference.</returns>
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
        if (Guard.Close())
        {
            Dispose(disposing: true);
            GC.SuppressFinalize(this);
        }
    }

    /// <summary>Whether <see cref="Dispose()"/> was called.</summary>
    protected bool IsDisposed => Guard.IsDisposed;

    /// <summary>Each call that reads or changes tokens is one of this guard's. What depends on the tokens is checked within it: until
    /// then another thread may change them.</summary>
    private protected CallGuard Guard { get; }

    /// <summary>What keys and values must be like.</summary>
    private protected CacheShape Shape { get; }

    /// <summary>Frees the storage. Called once.</summary>
    /// <param name="disposing">False when called from a finaliser.</param>
    protected abstract void Dispose(bool disposing);

    /// <summary>Throws if the cache was disposed.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    protected void ThrowIfDisposed() => Guard.ThrowIfDisposed();

    /// <summary>Checks the arguments of <see cref="Forward"/>.</summary>
    /// <exception cref="ArgumentException">An argument doesn't fit the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    protected void ValidateForward(Tensor query, Tensor keys, Tensor values, double? scale, ReadOnlySpan<int> counts)
    {
        ThrowIfDisposed();
        ValidateNewTokens(keys, values, counts);
        ValidateQuery(query, scale);
        CacheShape.CheckSameTokens(query, keys);
    }

    /// <summary>Checks keys and values of new tokens [batch, num_kv_heads, n, head_dim], and how many of them are real.</summary>
    /// <exception cref="ArgumentException">An argument doesn't fit the cache.</exception>
    protected void ValidateNewTokens(Tensor keys, Tensor values, ReadOnlySpan<int> counts)
    {
        Shape.CheckNewTokens(keys, values, BatchSize);
        CacheShape.CheckCounts(counts, BatchSize, keys.size(2));
    }

    /// <summary>Checks queries [batch, num_heads, n, head_dim] and their scale.</summary>
    /// <exception cref="ArgumentException">An argument doesn't fit the cache.</exception>
    protected void ValidateQuery(Tensor query, double? scale) => Shape.CheckQuery(query, BatchSize, scale);
}
