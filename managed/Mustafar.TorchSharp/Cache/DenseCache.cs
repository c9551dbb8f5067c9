using static TorchSharp.torch;

namespace Mustafar;

/// <summary>A cache that keeps all keys and values dense: the baseline of <see cref="KeyValueCache"/>.</summary>
/// <remarks>
/// Attention is torch's, except for steps of up to 8 tokens on the CPU: for a head_dim of 64, 80, 96, 128 or 256 these have the same kernels
/// as the recent window of a compressed cache.
/// Keys and values are blocks of [batch, num_kv_heads, capacity, head_dim], which grow by an eighth when they are full.
/// They are never repeated for the query heads of a KV head: at decode those heads are folded into the query axis.
/// On the CPU, NaN and infinity propagate as with weights exp(s − max s) / sum, written out over the tokens that a query sees; on CUDA
/// as in torch's kernels.
/// Only one thread at a time may use a cache; a second one gets an <see cref="InvalidOperationException"/>.
/// </remarks>
public sealed class DenseCache : KeyValueCache, IMeasuredCache
{
    private readonly int[] _slots; // of the sequences: all that there are
    private readonly int[] _lengths;
    private readonly IReadOnlyList<int> _readOnlyLengths;
    private readonly DenseStorage _storage;
    private readonly DenseDecode? _decode;
    private readonly DenseKernel? _kernel;

    /// <summary>Makes an empty cache.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    /// <param name="shape">KV heads and head_dim.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live; the CPU if null.</param>
    /// <param name="capacity">Tokens to allocate for at first; the cache grows past it automatically.</param>
    /// <param name="slidingWindow">How many of the latest tokens a token sees, including itself; all if null. Tokens outside the window
    /// stay in the cache, but are not read.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="batchSize"/> or <paramref name="slidingWindow"/> is not positive, or
    /// <paramref name="capacity"/> is negative.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type.</exception>
    public DenseCache(
        int batchSize, KeyValueShape shape, ScalarType dtype, Device? device = null, int capacity = 0, int? slidingWindow = null)
        : base(batchSize, shape, dtype, device ?? CPU)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(capacity);
        if (slidingWindow is int window)
        {
            ArgumentOutOfRangeException.ThrowIfNegativeOrZero(window, nameof(slidingWindow));
        }

        _slots = [.. Enumerable.Range(0, batchSize)];
        _lengths = new int[batchSize];
        _readOnlyLengths = Array.AsReadOnly(_lengths);
        _kernel = DenseKernel.TryMake(Shape);
        _storage = new DenseStorage(Shape, batchSize, slidingWindow, _kernel);
        _decode = DenseDecode.TryMake(Shape, batchSize);
        if (capacity > 0)
        {
            _storage.Reserve(DenseStorage.CapacityFor(capacity));
        }

        MustafarMetrics.Add(this, "dense");
    }

    /// <summary>How many of the latest tokens a token sees, including itself; all if null.</summary>
    public int? SlidingWindow => _storage.SlidingWindow;

    /// <inheritdoc/>
    public override IReadOnlyList<int> Lengths => _readOnlyLengths;

    /// <inheritdoc/>
    public override KeyValueCacheMemory Memory
    {
        get
        {
            ThrowIfDisposed();
            return _storage.MemoryOf(_lengths.Sum(length => (long)length));
        }
    }

    /// <inheritdoc/>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override Tensor Forward(
        Tensor query, Tensor keys, Tensor values, double? scale = null, ReadOnlySpan<int> counts = default)
    {
        ValidateForward(query, keys, values, scale, counts);
        using CallGuard.Call call = Guard.Enter();
        DenseStep step = new(_slots, _lengths, checked((int)keys.size(2)), counts);
        DenseDecode? decode = step.Tokens == 1 ? _decode : null;
        _storage.Reserve(DenseStorage.CapacityFor(decode is null ? step.Longest : step.Room, _storage.Capacity));
        Tensor output;
        try
        {
            decode?.Plan(step, _storage.Capacity, [SlidingWindow]);
            decode?.Prepare();
            output = _storage.Forward(step, decode, query, keys, values, scale);
        }
        catch
        {
            _storage.Rollback(step);
            throw;
        }

        _storage.Commit();
        step.After.CopyTo(_lengths, 0);
        return output;
    }

    /// <inheritdoc/>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override void Truncate(int length)
    {
        using CallGuard.Call call = Guard.Enter();
        int longest = Length;
        if (length < 0 || length > longest)
        {
            throw new ArgumentOutOfRangeException(nameof(length), length, $"Expected 0 to {longest}, the length of the longest sequence.");
        }

        foreach (int slot in _slots)
        {
            if (_lengths[slot] > length)
            {
                _storage.Erase(slot, length, _lengths[slot]);
                _lengths[slot] = length;
            }
        }
    }

    /// <inheritdoc/>
    /// <remarks>Everything is copied.</remarks>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override DenseCache Fork(ReadOnlySpan<int> parents)
    {
        ThrowIfDisposed();
        ValidateParents(parents);
        using CallGuard.Call call = Guard.Enter();
        DenseCache fork = new(parents.Length, KeyValueShape, DType, Device, _storage.Capacity, SlidingWindow);
        try
        {
            for (int b = 0; b < parents.Length; b++)
            {
                fork._storage.Continue(b, _storage, parents[b]);
                fork._lengths[b] = _lengths[parents[b]];
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
    public override void Clear() => Truncate(0);

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            MustafarMetrics.Remove(this);
            _storage.Dispose();
            _decode?.Dispose();
            _kernel?.Dispose();
        }
    }
}
