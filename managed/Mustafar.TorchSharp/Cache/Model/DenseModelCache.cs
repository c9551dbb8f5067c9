using static TorchSharp.torch;

namespace Mustafar;

/// <summary>The dense keys and values of all layers of a model, with the attention of a
/// <see cref="DenseCache"/>: the baseline of <see cref="ModelKeyValueCache"/>.</summary>
/// <remarks>
/// Each layer stores a block of [sequences, num_kv_heads, capacity, head_dim] like a <see cref="DenseCache"/>, with room for the longest
/// sequence in every slot. A step whose sequences are not adjacent in it copies what it reads of them. Forking copies all tokens. A budget
/// counts all of that room. <see cref="CacheLimits.MaxSequences"/> and <see cref="CacheLimits.MaxLength"/> together allocate it at once.
/// </remarks>
public sealed class DenseModelCache : ModelKeyValueCache, IMeasuredCache
{
    private readonly DenseStorage[] _layers;
    private int[] _lengths;
    private readonly DenseKernel? _kernel;
    private DenseStep? _step;
    private DenseDecode? _decode;

    /// <summary>Makes a cache without sequences.</summary>
    /// <param name="numLayers">Number of layers.</param>
    /// <param name="shape">KV heads and head_dim.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live; the CPU if null.</param>
    /// <param name="slidingWindow">How many of the latest tokens a token of any layer sees, including itself; all if null.</param>
    /// <param name="limits">Limits of the cache; none if null.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="numLayers"/> or <paramref name="slidingWindow"/> is not positive.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type.</exception>
    /// <exception cref="CacheBudgetException">The budget is too small for one token of each sequence.</exception>
    public DenseModelCache(
        int numLayers,
        KeyValueShape shape,
        ScalarType dtype,
        Device? device = null,
        int? slidingWindow = null,
        CacheLimits? limits = null)
        : this(Repeated(numLayers, slidingWindow), shape, dtype, device, limits)
    {
    }

    /// <summary>Makes a cache without sequences, for layers that see different numbers of tokens.</summary>
    /// <param name="slidingWindows">For each layer, how many of the latest tokens a token sees, including itself; all if null.</param>
    /// <param name="shape">KV heads and head_dim.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live; the CPU if null.</param>
    /// <param name="limits">Limits of the cache; none if null.</param>
    /// <exception cref="ArgumentOutOfRangeException">A window is not positive.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type, or there is no layer.</exception>
    /// <exception cref="CacheBudgetException">The budget is too small for one token of each sequence.</exception>
    public DenseModelCache(
        IReadOnlyList<int?> slidingWindows,
        KeyValueShape shape,
        ScalarType dtype,
        Device? device = null,
        CacheLimits? limits = null)
        : base(
            CacheShape.Checked(shape, dtype, Native.TensorAccess.Resolve(device ?? CPU)),
            Checked(slidingWindows).Count,
            limits ?? new CacheLimits())
    {
        _lengths = new int[Limits.MaxSequences ?? 1];
        _kernel = DenseKernel.TryMake(Shape);
        _layers = [.. slidingWindows.Select(window => new DenseStorage(Shape, _lengths.Length, window, _kernel))];
        _decode = DenseDecode.TryMake(Shape, _lengths.Length);
        Require(_lengths.Length, DenseStorage.CapacityFor(1));
        if (Limits is { MaxSequences: not null, MaxLength: int longest })
        {
            try
            {
                Reserve(_decode is null ? longest : checked(longest + 1));
            }
            catch
            {
                Dispose(disposing: true);
                throw;
            }
        }

        MustafarMetrics.Add(this, "dense");
    }

    /// <summary>For each layer, how many of the latest tokens a token sees, including itself; null for all.</summary>
    public IReadOnlyList<int?> SlidingWindows => [.. _layers.Select(layer => layer.SlidingWindow)];

    /// <inheritdoc/>
    public override KeyValueCacheMemory Memory
    {
        get
        {
            Guard.ThrowIfDisposed();
            long tokens = _lengths.Sum(length => (long)length);
            return KeyValueCacheMemory.Sum(_layers.Select(layer => layer.MemoryOf(tokens)));
        }
    }

    /// <inheritdoc/>
    public override CacheUsage Usage
    {
        get
        {
            KeyValueCacheMemory memory = Memory;
            long? free = Budget - memory.WindowBytes;
            return new CacheUsage(Sequences.Count, memory.DenseBytes, memory.WindowBytes, free, free / TokenBytes);
        }
    }

    private protected override int Slots => _lengths.Length;

    // Computes the attention of the current step; null if that has several tokens, or such attention is not available.
    private DenseDecode? StepDecode => _step!.Tokens == 1 ? _decode : null;

    // Bytes of a token in all layers.
    private long TokenBytes => NumLayers * Shape.TokenBytes;

    // Bytes that the budget allows; null without one.
    private long? Budget => Limits.BudgetTokens is long tokens
        ? Math.Min(Limits.BudgetBytes ?? long.MaxValue, Math.Min(tokens, long.MaxValue / TokenBytes) * TokenBytes)
        : Limits.BudgetBytes;

    private protected override void Grow(int slots)
    {
        Require(slots, _layers[0].Capacity);
        Array.ForEach(_layers, layer => layer.Grow(slots));
        _decode?.Dispose();
        _decode = DenseDecode.TryMake(Shape, slots);
        Array.Resize(ref _lengths, slots);
    }

    private protected override int LengthAt(int slot) => _lengths[slot];

    private protected override int PositionAt(int slot) => _lengths[slot];

    private protected override void Add(int slot) => _lengths[slot] = 0;

    private protected override void Remove(int slot) => Shorten(slot, 0, slot);

    private protected override void Continue(int slot, int parent)
    {
        Array.ForEach(_layers, layer => layer.Continue(slot, layer, parent));
        _lengths[slot] = _lengths[parent];
    }

    private protected override void Shorten(int slot, int length, int sequence)
    {
        Array.ForEach(_layers, layer => layer.Erase(slot, length, _lengths[slot]));
        _lengths[slot] = length;
    }

    private protected override void Begin(ReadOnlySpan<int> slots, int tokens, ReadOnlySpan<int> counts)
    {
        DenseStep step = new(slots, _lengths, tokens, counts);
        Reserve(_decode is null ? step.Longest : step.Room);
        if (tokens == 1)
        {
            _decode?.Plan(step, _layers[0].Capacity, SlidingWindows);
        }

        _step = step;
    }

    private protected override Tensor Forward(
        int layer, Tensor query, Tensor keys, Tensor values, double? scale, HeadRotation? rotation) =>
        _layers[layer].Forward(_step!, StepDecode, query, keys, values, scale, rotation);

    private protected override void Prepare() => StepDecode?.Prepare();

    private protected override Tensor Positions() => _decode?.Positions ?? tensor(_step!.Before, device: Device);

    private protected override StepLayout? Layout() => _decode is null || !_step!.IsRun ? null : new StepLayout(
        _decode.Batch, _decode.Bound, _decode.IsPadded, new TableAddresses(_decode.Address, 0, _layers[0].Capacity, Slabs: 0, SlabCount: 0, Moves: 0),
        _decode.BiasAddress, _layers[0].AddressOf(_step.Slots[0]), Buffers.Version);

    private protected override void Commit()
    {
        Array.ForEach(_layers, layer => layer.Commit());
        for (int b = 0; b < _step!.Slots.Length; b++)
        {
            _lengths[_step.Slots[b]] = _step.After[b];
        }
    }

    private protected override void Rollback() => Array.ForEach(_layers, layer => layer.Rollback(_step!));

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            MustafarMetrics.Remove(this);
            Array.ForEach(_layers, layer => layer.Dispose());
            _decode?.Dispose();
            _kernel?.Dispose();
        }
    }

    private static int?[] Repeated(int numLayers, int? slidingWindow)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(numLayers);
        int?[] windows = new int?[numLayers];
        Array.Fill(windows, slidingWindow);
        return windows;
    }

    private static IReadOnlyList<int?> Checked(IReadOnlyList<int?> slidingWindows)
    {
        ArgumentNullException.ThrowIfNull(slidingWindows);
        if (slidingWindows.Count == 0)
        {
            throw new ArgumentException("Expected at least one layer, but got none.", nameof(slidingWindows));
        }

        foreach (int? window in slidingWindows)
        {
            if (window <= 0)
            {
                throw new ArgumentOutOfRangeException(nameof(slidingWindows), window, "Expected a positive number of tokens, or null.");
            }
        }

        return slidingWindows;
    }

    // Makes room for that many tokens in every slot: an eighth more than before, if the budget allows it.
    private void Reserve(int tokens)
    {
        int capacity = DenseStorage.CapacityFor(tokens, _layers[0].Capacity);
        if (BytesOf(Slots, capacity) > Budget)
        {
            capacity = DenseStorage.CapacityFor(tokens);
            Require(Slots, capacity);
        }

        Array.ForEach(_layers, layer => layer.Reserve(capacity));
    }

    private void Require(int slots, int capacity)
    {
        long needed = BytesOf(slots, capacity) - BytesOf(Slots, _layers[0].Capacity);
        if (Budget - BytesOf(Slots, _layers[0].Capacity) is long free && needed > free)
        {
            throw new CacheBudgetException(needed, free);
        }
    }

    private long BytesOf(int slots, int capacity) => (long)slots * capacity * TokenBytes;
}
