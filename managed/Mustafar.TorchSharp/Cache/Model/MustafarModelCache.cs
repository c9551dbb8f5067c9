using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// The pruned and compressed keys and values of all layers of a model, stored like those of one layer in a <see cref="MustafarCache"/>.
/// </summary>
/// <remarks>
/// A page holds the same group of tokens in all layers. So <see cref="MustafarOptions.GroupSize"/>,
/// <see cref="MustafarOptions.LocalWindow"/> and <see cref="MustafarOptions.SinkTokens"/> must be the same in all layers; sparsity,
/// patterns, bits and sliding window may differ. A page is freed once no layer's sliding window reaches it. Forked sequences share their
/// pages, and only the recent window is copied. With <see cref="CacheLimits.MaxSequences"/> and <see cref="CacheLimits.MaxLength"/>, no
/// sequence that joins, leaves or grows moves the data of the others.
/// </remarks>
/// <example>
/// <code>
/// KeyValueShape shape = new() { NumKvHeads = 2, HeadDim = 64 };
/// CacheLimits limits = new() { MaxSequences = 8, BudgetBytes = 64 &lt;&lt; 20 };
/// using MustafarModelCache cache = new(numLayers: 4, shape, ScalarType.Float32, CPU, MustafarPresets.FourBits, limits);
/// int first = cache.AddSequence(), second = cache.AddSequence();
///
/// // 100 new tokens of both sequences, in all layers.
/// using (CacheStep step = cache.BeginStep([first, second], tokens: 100))
/// {
///     for (int layer = 0; layer &lt; cache.NumLayers; layer++)
///     {
///         Tensor attended = step.Attend(layer, query: randn(2, 4, 100, 64), keys: randn(2, 2, 100, 64), values: randn(2, 2, 100, 64));
///     }
///
///     step.Commit();
/// }
///
/// int fork = cache.Fork(first); // shares the pages of the first
/// cache.RemoveSequence(second);
/// </code>
/// </example>
public sealed class MustafarModelCache : ModelKeyValueCache
{
    private readonly CompressedStore _store;

    /// <summary>Makes a cache without sequences, for layers that are alike.</summary>
    /// <param name="numLayers">Number of layers.</param>
    /// <param name="shape">KV heads and head_dim, which is 64, 80, 96, 128 or 256.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live; the CPU if null.</param>
    /// <param name="options">Sparsity, bits, recent window and group of all layers; the defaults if null.</param>
    /// <param name="limits">Limits of the cache; none if null.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="numLayers"/> is not positive.</exception>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type, or options contradict each other.</exception>
    /// <exception cref="NotSupportedException">The head_dim or the device is not supported, or not with these patterns and
    /// bits.</exception>
    /// <exception cref="CacheBudgetException">The budget is too small for one group of tokens.</exception>
    public MustafarModelCache(
        int numLayers,
        KeyValueShape shape,
        ScalarType dtype,
        torch.Device? device = null,
        MustafarOptions? options = null,
        CacheLimits? limits = null)
        : this(Repeated(numLayers, options), shape, dtype, device, limits)
    {
    }

    /// <summary>Makes a cache without sequences, for layers that differ.</summary>
    /// <param name="layers">Sparsity, bits, recent window and group of each layer.</param>
    /// <param name="shape">KV heads and head_dim, which is 64, 80, 96, 128 or 256.</param>
    /// <param name="dtype">Type of keys, values and queries: Float32, Float16 or BFloat16.</param>
    /// <param name="device">Where keys and values live; the CPU if null.</param>
    /// <param name="limits">Limits of the cache; none if null.</param>
    /// <exception cref="ArgumentException"><paramref name="dtype"/> is not a supported floating-point type, options contradict each other, or
    /// layers differ in options that must be the same.</exception>
    /// <exception cref="NotSupportedException">The head_dim or the device is not supported, or not with these patterns and
    /// bits.</exception>
    /// <exception cref="CacheBudgetException">The budget is too small for one group of tokens.</exception>
    public MustafarModelCache(
        IReadOnlyList<MustafarOptions> layers,
        KeyValueShape shape,
        ScalarType dtype,
        torch.Device? device = null,
        CacheLimits? limits = null)
        : base(
            CacheShape.Checked(shape, dtype, TensorAccess.Resolve(device ?? CPU)),
            Checked(layers).Count,
            limits ?? new CacheLimits()) =>
        _store = new CompressedStore(Shape, [.. layers], Limits);

    // A copy of some layers of another cache, which does not change.
    private MustafarModelCache(MustafarModelCache source, ReadOnlySpan<int> layers)
        : base(source.Shape, layers.Length, new CacheLimits { MaxSequences = source.Slots })
    {
        _store = source._store.Extract(layers, source.SlotsOf([.. source.Sequences]));
        TakeNames(source);
    }

    /// <summary>Sparsity, bits, recent window and group of each layer.</summary>
    public IReadOnlyList<MustafarOptions> Options => _store.Options;

    /// <inheritdoc/>
    public override KeyValueCacheMemory Memory
    {
        get
        {
            Guard.ThrowIfDisposed();
            return _store.Memory;
        }
    }

    /// <inheritdoc/>
    public override CacheUsage Usage
    {
        get
        {
            Guard.ThrowIfDisposed();
            return _store.Usage;
        }
    }

    /// <summary>Pages that sequences have.</summary>
    internal int UsedPages => _store.Table.Pool.Pages - _store.Table.Pool.FreePages;

    private protected override int Slots => _store.Table.Slots;

    /// <summary>How many of a sequence's first tokens are compressed, not counting its attention sinks.</summary>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    public int CompressedLengthOf(int sequence) => _store.Table[SlotOf(sequence)].Compressed;

    /// <summary>Removes tokens of a sequence as if they had never been there. The tokens that are kept retain the positions that they were
    /// encoded with, the sequence gets shorter, and the pages of the removed tokens are freed.</summary>
    /// <remarks>
    /// A token is identified by its index among the stored ones, 0 to <see cref="ModelKeyValueCache.LengthOf"/> − 1. Layers and KV heads
    /// may keep different tokens, but equally many. Kept tokens are stored as the options require for a sequence of the new length: what
    /// was pruned stays pruned, and what leaves the recent window is pruned. Integers are quantised again from the stored ones, which moves
    /// a number by no more than its rounding to the type of the cache. Balanced values extend over four tokens, so more of them may be
    /// pruned.
    /// <see cref="ModelKeyValueCache.PositionOf"/> does not change. Afterwards <see cref="ModelKeyValueCache.Truncate"/> can only drop
    /// tokens after the last gap, or all of them, and the sequence can't be saved.
    /// </remarks>
    /// <param name="sequence">Its number.</param>
    /// <param name="tokens">The tokens to keep in each layer and KV head, Int64 [num_layers, num_kv_heads, count] with count ≥ 1, ascending; the
    /// attention sinks must be among them.</param>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="ArgumentException">The tensor has another type or shape, a token is not in the sequence, they are not in ascending
    /// order, or a sink is missing.</exception>
    /// <exception cref="NotSupportedException">A layer has a sliding window, which counts stored tokens, or does not select channels by
    /// magnitude.</exception>
    /// <exception cref="CacheBudgetException">There are not enough pages for the kept tokens in addition to all present ones; nothing has
    /// changed.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public void KeepTokens(int sequence, Tensor tokens)
    {
        ArgumentNullException.ThrowIfNull(tokens);
        using CallGuard.Call call = EnterBetweenSteps();
        int slot = SlotOf(sequence);
        for (int layer = 0; layer < NumLayers; layer++)
        {
            if (Options[layer].SlidingWindow is int window)
            {
                throw new NotSupportedException($"Tokens can't be removed from a cache with a sliding window, which layer {layer} has: {window} tokens.");
            }

            if (!TokenEviction.GoesWith(Options[layer]))
            {
                throw new NotSupportedException(
                    $"Tokens can't be removed unless channels are chosen by magnitude, but layer {layer} chooses '{Options[layer].KeySelection.Name}' for keys and '{Options[layer].ValueSelection.Name}' for values.");
            }
        }

        int latest = KeptTokens.Check(tokens, NumLayers, NumKvHeads, LengthAt(slot), Math.Min(LengthAt(slot), Options[0].SinkTokens), sequence);
        if (tokens.size(2) < LengthAt(slot))
        {
            _store.Keep(slot, tokens, latest);
        }
    }

    /// <summary>Whether tokens in the middle of a sequence were removed.</summary>
    internal bool IsScattered(int sequence) => _store.Table[SlotOf(sequence)].Scattered > 0;

    /// <summary>Addresses of a sequence's pages in the first layer, for tests.</summary>
    internal nint[] PageAddresses(int sequence) =>
        [.. _store.Table[SlotOf(sequence)].Pages.Select(page => _store.Table.Pool.Address(page))];

    /// <summary>Excludes steps and other threads until it is disposed.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    internal IDisposable Claim() => EnterBetweenSteps();

    /// <summary>Each layer's part of sequences, as stored in a file.</summary>
    internal StoredLayer[] Stored(IReadOnlyList<int> sequences)
    {
        int[] slots = SlotsOf([.. sequences]);
        return [.. Enumerable.Range(0, NumLayers).Select(layer => new StoredLayer(_store, layer, slots))];
    }

    /// <summary>Adds tokens to the single layer, without attention.</summary>
    /// <param name="sequences">The sequence of each row.</param>
    /// <param name="keys">Keys [batch, num_kv_heads, n, head_dim], positions encoded.</param>
    /// <param name="values">Values [batch, num_kv_heads, n, head_dim].</param>
    internal void Append(ReadOnlySpan<int> sequences, Tensor keys, Tensor values)
    {
        Shape.CheckNewTokens(keys, values, sequences.Length);
        using CallGuard.Call call = EnterBetweenSteps();
        _store.Append(SlotsOf(sequences), keys, values, counts: default);
    }

    /// <summary>A cache of some of the layers, with the sequences as they were before a step in progress.</summary>
    internal MustafarModelCache Extract(ReadOnlySpan<int> layers) => new(this, layers);

    private protected override void Grow(int slots) => _store.Grow(slots);

    private protected override int LengthAt(int slot) => _store.Table[slot].Tokens;

    private protected override int PositionAt(int slot) => _store.Table[slot].Position;

    private protected override void Add(int slot) => _store.Table.Add(slot);

    private protected override void Remove(int slot) => _store.Remove(slot);

    private protected override void Continue(int slot, int parent) => _store.Continue(slot, _store, parent);

    private protected override void Shorten(int slot, int length, int sequence) => _store.Shorten([slot], [length], [sequence]);

    private protected override void Begin(ReadOnlySpan<int> slots, int tokens, ReadOnlySpan<int> counts) =>
        _store.Begin(slots, tokens, counts, StepKind.Forward);

    private protected override Tensor Forward(
        int layer, Tensor query, Tensor keys, Tensor values, double? scale, HeadRotation? rotation) =>
        _store.Forward(layer, query, keys, values, scale, rotation, isLast: false);

    private protected override Tensor Positions() => _store.Plan.Positions;

    private protected override StepLayout? Layout() => _store.Layout(Buffers.Version);

    private protected override void Commit() => _store.Commit();

    private protected override void Settle() => _store.Evict();

    private protected override void Rollback() => _store.Rollback();

    private protected override void CheckScale(double? scale) => CompressedStore.CheckScale(scale);

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _store.Dispose();
        }
    }

    private static MustafarOptions[] Repeated(int numLayers, MustafarOptions? options)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(numLayers);
        MustafarOptions[] layers = new MustafarOptions[numLayers];
        Array.Fill(layers, options ?? new MustafarOptions());
        return layers;
    }

    private static IReadOnlyList<MustafarOptions> Checked(IReadOnlyList<MustafarOptions> layers)
    {
        ArgumentNullException.ThrowIfNull(layers);
        return layers.Contains(null)
            ? throw new ArgumentException("Expected the options of each layer, but one is null.", nameof(layers))
            : layers;
    }
}
