using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>A cache that keeps all keys and values dense: the baseline of <see cref="KeyValueCache"/>, with torch's attention.</summary>
/// <remarks>
/// Keys and values lie in one block of [batch, num_kv_heads, capacity, head_dim] each, which grows by an eighth when it is full.
/// They are never repeated for the query heads of a group: at decode the group is folded into the query axis.
/// NaN and infinity give on the CPU what weights exp(s − max s) / sum, written out over the tokens that a query sees, give; on CUDA
/// what torch's kernels make of them.
/// A cache is used by one thread at a time; a second one gets an <see cref="InvalidOperationException"/>.
/// </remarks>
public sealed class DenseCache : KeyValueCache
{
    private const int CapacityStep = 64;

    private readonly int[] _lengths;
    private readonly IReadOnlyList<int> _readOnlyLengths;

    // Slots past a sequence's length hold finite numbers: a masked slot has weight 0, and 0 · NaN would be NaN.
    private Tensor? _keys;
    private Tensor? _values;
    private int _capacity;

    // Whether no stored token holds NaN or infinity. Kept so that a step looks at its own tokens only.
    private bool _isFinite = true;

    /// <summary>Makes an empty cache.</summary>
    /// <param name="batchSize">Number of sequences.</param>
    /// <param name="numKvHeads">Number of key/value heads.</param>
    /// <param name="headDim">Elements of one head's key, and of its value.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live; the CPU if null.</param>
    /// <param name="capacity">Tokens to allocate for at first; the cache grows past it by itself.</param>
    /// <param name="slidingWindow">A token sees only the last so many tokens, itself included; all if null. Those that it doesn't see
    /// stay in the cache, but are not read.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size or <paramref name="slidingWindow"/> is not positive, or
    /// <paramref name="capacity"/> is negative.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type.</exception>
    public DenseCache(
        int batchSize, int numKvHeads, int headDim, ScalarType dtype, Device? device = null, int capacity = 0, int? slidingWindow = null)
        : base(batchSize, numKvHeads, headDim, dtype, device ?? CPU)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(capacity);
        if (slidingWindow is int window)
        {
            ArgumentOutOfRangeException.ThrowIfNegativeOrZero(window, nameof(slidingWindow));
        }

        SlidingWindow = slidingWindow;
        _lengths = new int[batchSize];
        _readOnlyLengths = Array.AsReadOnly(_lengths);
        if (capacity > 0)
        {
            Reserve(capacity);
        }
    }

    /// <summary>A token sees only the last so many tokens, itself included; all if null.</summary>
    public int? SlidingWindow { get; }

    /// <inheritdoc/>
    public override IReadOnlyList<int> Lengths => _readOnlyLengths;

    /// <inheritdoc/>
    public override KeyValueCacheMemory Memory
    {
        get
        {
            ThrowIfDisposed();
            long elementSize = DType == ScalarType.Float32 ? 4 : 2;
            long elementsPerToken = 2L * NumKvHeads * HeadDim;
            long elements = _lengths.Sum(length => (long)length) * elementsPerToken;
            return new KeyValueCacheMemory(
                CompressedBytes: 0,
                WindowBytes: (long)BatchSize * _capacity * elementsPerToken * elementSize,
                DenseBytes: elements * elementSize,
                Fp16Bytes: elements * 2);
        }
    }

    /// <inheritdoc/>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override Tensor Forward(
        Tensor query, Tensor keys, Tensor values, double? scale = null, ReadOnlySpan<int> counts = default)
    {
        ValidateForward(query, keys, values, scale, counts);
        using CallGuard.Call call = Guard.Enter();
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();

        int tokens = checked((int)keys.shape[2]);
        int[] lengths = new int[BatchSize];
        for (int i = 0; i < lengths.Length; i++)
        {
            lengths[i] = checked(_lengths[i] + (counts.IsEmpty ? tokens : counts[i]));
        }

        int longest = lengths.Max();
        if (longest == 0)
        {
            return zeros_like(query).MoveToOuterDisposeScope();
        }

        Reserve(longest);
        Tensor output;
        bool wasFinite = _isFinite;
        try
        {
            _isFinite = wasFinite && DenseAttention.IsFinite(keys, values);
            Write(_keys!, keys, counts);
            Write(_values!, values, counts);
            output = Attend(query, scale, longest, lengths, padded: !counts.IsEmpty && !AllEqual(counts, tokens));
        }
        catch
        {
            Erase(_lengths, longest);
            _isFinite = wasFinite;
            throw;
        }

        lengths.CopyTo(_lengths, 0);
        return output.MoveToOuterDisposeScope();
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

        if (length == longest)
        {
            return;
        }

        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        int[] lengths = [.. _lengths.Select(own => Math.Min(own, length))];
        Erase(lengths, longest);
        lengths.CopyTo(_lengths, 0);
        _isFinite = _isFinite || DenseAttention.IsFinite(_keys!, _values!);
    }

    /// <inheritdoc/>
    /// <remarks>Everything is copied.</remarks>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override DenseCache Fork(ReadOnlySpan<int> parents)
    {
        ThrowIfDisposed();
        ValidateParents(parents);
        using CallGuard.Call call = Guard.Enter();
        DenseCache fork = new(parents.Length, NumKvHeads, HeadDim, DType, Device, _capacity, SlidingWindow);
        try
        {
            using IDisposable noGrad = no_grad();
            using DisposeScope scope = NewDisposeScope();
            for (int b = 0; b < parents.Length; b++)
            {
                fork._keys?[b].copy_(_keys![parents[b]]);
                fork._values?[b].copy_(_values![parents[b]]);
                fork._lengths[b] = _lengths[parents[b]];
            }

            fork._isFinite = _isFinite;
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
            _keys?.Dispose();
            _values?.Dispose();
        }
    }

    private static bool AllEqual(ReadOnlySpan<int> numbers, int expected) => numbers.IndexOfAnyExcept(expected) < 0;

    private void Reserve(int tokens)
    {
        if (tokens <= _capacity)
        {
            return;
        }

        long wanted = Math.Max(tokens, _capacity + (_capacity / 8L));
        int capacity = checked((int)((wanted + CapacityStep - 1) / CapacityStep * CapacityStep));
        Tensor keys = Grown(_keys, capacity);
        Tensor values;
        try
        {
            values = Grown(_values, capacity);
        }
        catch
        {
            keys.Dispose();
            throw;
        }

        _keys?.Dispose();
        _values?.Dispose();
        (_keys, _values, _capacity) = (keys, values, capacity);
    }

    private Tensor Grown(Tensor? old, int capacity)
    {
        // A tensor made in inference mode could not be written to outside of it later.
        using IDisposable mode = inference_mode(false);
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        Tensor grown = zeros(BatchSize, NumKvHeads, capacity, HeadDim, dtype: DType, device: Device);
        if (old is not null)
        {
            grown.narrow(2, 0, _capacity).copy_(old);
        }

        return grown.DetachFromDisposeScope();
    }

    private void Write(Tensor destination, Tensor source, ReadOnlySpan<int> counts)
    {
        int tokens = (int)source.shape[2];
        if (AllEqual(_lengths, _lengths[0]) && AllEqual(counts, tokens))
        {
            destination.narrow(2, _lengths[0], tokens).copy_(source);
            return;
        }

        for (int i = 0; i < BatchSize; i++)
        {
            int count = counts.IsEmpty ? tokens : counts[i];
            if (count > 0)
            {
                destination[i].narrow(1, _lengths[i], count).copy_(source[i].narrow(1, 0, count));
            }
        }
    }

    // Makes the slots from each sequence's length to an end such as they are where no token was.
    private void Erase(int[] lengths, int end)
    {
        for (int i = 0; i < BatchSize; i++)
        {
            _keys![i].narrow(1, lengths[i], end - lengths[i]).zero_();
            _values![i].narrow(1, lengths[i], end - lengths[i]).zero_();
        }
    }

    // The new tokens are in storage; _lengths still counts the past, lengths the tokens that each sequence has now.
    private Tensor Attend(Tensor query, double? scale, int longest, int[] lengths, bool padded)
    {
        int first = SlidingWindow is int window ? (int)Math.Max(0, _lengths.Min() + 1L - window) : 0;
        Tensor keys = _keys!.narrow(2, first, longest - first);
        Tensor values = _values!.narrow(2, first, longest - first);
        long tokens = query.shape[2];
        bool uniform = AllEqual(_lengths, _lengths[0]) && !padded;
        if (uniform && _lengths[0] == 0)
        {
            return DenseAttention.Causal(query, keys, values, scale, SlidingWindow);
        }

        Tensor? mask = uniform && tokens == 1 ? null : VisibleKeys(first, longest, (int)tokens, uniform);
        bool finite = _isFinite && DenseAttention.IsFinite(query);
        Tensor output = DenseAttention.Forward(query, keys, values, scale, mask, causal: false, finite);
        return padded ? output.masked_fill(Padding(lengths, (int)tokens), Scalars.Zero) : output;
    }

    // True where a query may look [batch or 1, 1, tokens, longest - first]: key j of query i if j ≤ past + i and within the window. A
    // sequence's unused slots come after all of its real queries, each of which sees itself. Without a window padding sees slot 0;
    // with one it may see nothing, and what the softmax makes of that is masked.
    private Tensor VisibleKeys(int first, int longest, int tokens, bool uniform)
    {
        int[] past = uniform ? [_lengths[0]] : _lengths;
        Tensor position = tensor(past, dtype: ScalarType.Int64, device: Device).reshape(-1, 1, 1, 1)
            .add(Scalars.Range(0, tokens, Device).reshape(1, 1, -1, 1), Scalars.One);
        Tensor key = Scalars.Range(first, longest - first, Device).reshape(1, 1, 1, -1);
        Tensor visible = key.le(position);
        if (SlidingWindow is int window)
        {
            Scalar limit = window;
            visible = visible.logical_and((position - key).lt(limit));
            GC.KeepAlive(limit);
        }

        return visible;
    }

    private Tensor Padding(int[] lengths, int tokens)
    {
        int[] counts = new int[BatchSize];
        for (int i = 0; i < counts.Length; i++)
        {
            counts[i] = lengths[i] - _lengths[i];
        }

        return Scalars.Range(0, tokens, Device).reshape(1, 1, -1, 1)
            >= tensor(counts, dtype: ScalarType.Int64, device: Device).reshape(-1, 1, 1, 1);
    }
}
