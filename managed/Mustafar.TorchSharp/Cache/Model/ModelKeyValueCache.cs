using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>The keys and values of all layers of a model, for sequences that join, leave, fork and are shortened between steps.</summary>
/// <remarks>
/// <para>
/// A sequence is identified by the number that <see cref="AddSequence"/> or <see cref="Fork"/> returns. What belongs to a sequence (its
/// length, its position, which tokens are compressed) is kept once for all layers. New tokens join in steps.
/// </para>
/// <para>
/// Only one thread at a time may use a cache; a second one gets an <see cref="InvalidOperationException"/>. Any thread may read
/// <see cref="Sequences"/>, <see cref="LengthOf"/>, <see cref="PositionOf"/>, <see cref="Memory"/> and <see cref="Usage"/>, as long as
/// no other one adds or removes sequences. Any thread may call <see cref="Dispose()"/>, which waits for a call in progress.
/// </para>
/// </remarks>
/// <example>
/// <code>
/// int sequence = cache.AddSequence();
/// using (CacheStep step = cache.BeginStep([sequence], tokens))
/// {
///     for (int layer = 0; layer &lt; cache.NumLayers; layer++)
///     {
///         // queries and keys at step.Positions
///         Tensor attended = step.Attend(layer, query, keys, values);
///     }
///
///     step.Commit();
/// }
/// </code>
/// </example>
public abstract class ModelKeyValueCache : IDisposable
{
    // The slot of each sequence; slots are reused, sequence numbers are not.
    private readonly SortedDictionary<int, int> _slots = [];
    private int _nextSequence;
    private CacheStep? _step;

    private protected ModelKeyValueCache(CacheShape shape, int numLayers, CacheLimits limits)
    {
        (Shape, NumLayers, Limits) = (shape, numLayers, limits);
        Guard = new CallGuard(this);
        Buffers = new StepBuffers(shape.Device);
    }

    /// <summary>Number of layers.</summary>
    public int NumLayers { get; }

    /// <summary>KV heads and head_dim of each layer.</summary>
    public KeyValueShape KeyValueShape => Shape.Heads;

    /// <summary>Number of KV heads.</summary>
    public int NumKvHeads => Shape.NumKvHeads;

    /// <summary>Elements of one head's key, and of its value.</summary>
    public int HeadDim => Shape.HeadDim;

    /// <summary>Type of keys, values and queries.</summary>
    public ScalarType DType => Shape.DType;

    /// <summary>Where keys and values live.</summary>
    public Device Device => Shape.Device;

    /// <summary>The limits of the cache.</summary>
    public CacheLimits Limits { get; }

    /// <summary>The sequences in the cache, in the order in which they were added.</summary>
    public IReadOnlyList<int> Sequences => [.. _slots.Keys];

    /// <summary>The memory that the cache takes.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public abstract KeyValueCacheMemory Memory { get; }

    /// <summary>Used and free memory.</summary>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public abstract CacheUsage Usage { get; }

    /// <summary>Tensors that the layers of a step share.</summary>
    internal StepBuffers Buffers { get; }

    private protected CacheShape Shape { get; }

    private protected CallGuard Guard { get; }

    /// <summary>Number of sequences that there is room for.</summary>
    private protected abstract int Slots { get; }

    /// <summary>Number of cached tokens of a sequence.</summary>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    public int LengthOf(int sequence) => LengthAt(SlotOf(sequence));

    /// <summary>Position of a sequence's next token, with which it must be encoded, however many of the tokens before it are still
    /// stored.</summary>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    public int PositionOf(int sequence) => PositionAt(SlotOf(sequence));

    /// <summary>Adds an empty sequence. The others stay in place, unless the cache has to grow.</summary>
    /// <returns>Its number.</returns>
    /// <exception cref="CacheLimitException">There are <see cref="CacheLimits.MaxSequences"/> already.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public int AddSequence()
    {
        using CallGuard.Call call = EnterBetweenSteps();
        int slot = TakeSlot();
        Add(slot);
        return Name(slot);
    }

    /// <summary>Makes room for exactly this many sequences. Without this call, the cache grows by an eighth whenever a sequence does not
    /// fit, so that few sequences take no more room than they need.</summary>
    /// <param name="sequences">The number, including the present ones.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="sequences"/> is negative.</exception>
    /// <exception cref="CacheLimitException">They are more than <see cref="CacheLimits.MaxSequences"/>.</exception>
    /// <exception cref="CacheBudgetException">The budget is too small for them.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public void EnsureCapacity(int sequences)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sequences);
        using CallGuard.Call call = EnterBetweenSteps();
        if (sequences > Limits.MaxSequences)
        {
            throw new CacheLimitException($"Expected at most {Limits.MaxSequences} sequences, but got {sequences}. Remove some first.");
        }

        if (sequences > Slots)
        {
            Grow(sequences);
        }
    }

    /// <summary>Removes a sequence and frees its memory for others.</summary>
    /// <param name="sequence">Its number.</param>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public void RemoveSequence(int sequence)
    {
        using CallGuard.Call call = EnterBetweenSteps();
        Remove(SlotOf(sequence));
        _slots.Remove(sequence);
    }

    /// <summary>Adds a sequence that continues another one, for beams or several answers to one prompt.</summary>
    /// <param name="sequence">Number of the other, which does not change.</param>
    /// <returns>Number of the new one.</returns>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="CacheLimitException">There are <see cref="CacheLimits.MaxSequences"/> already.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public int Fork(int sequence)
    {
        using CallGuard.Call call = EnterBetweenSteps();
        int parent = SlotOf(sequence);
        int slot = TakeSlot();
        Continue(slot, parent);
        return Name(slot);
    }

    /// <summary>Shortens a sequence to its first tokens (rollback).</summary>
    /// <param name="sequence">Its number.</param>
    /// <param name="length">Tokens that remain.</param>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="length"/> is negative or more than the sequence has.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, another thread is using the cache, or tokens that the next one
    /// would see have left every layer's sliding window.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public void Truncate(int sequence, int length)
    {
        using CallGuard.Call call = EnterBetweenSteps();
        int slot = SlotOf(sequence);
        if (length < 0 || length > LengthAt(slot))
        {
            throw new ArgumentOutOfRangeException(
                nameof(length), length, $"Sequence {sequence} can be shortened to 0 to {LengthAt(slot)} tokens.");
        }

        Shorten(slot, length, sequence);
    }

    /// <summary>Begins a step, which adds new tokens to some of the sequences, in all layers.</summary>
    /// <remarks>
    /// A long prompt may come in several steps, which bounds the memory that a step needs in addition to the cache. Each step sees the
    /// tokens of earlier ones as they are stored: in a cache that prunes, only what was kept of them.
    /// </remarks>
    /// <param name="sequences">The sequences, each once, in the order of the rows of queries, keys and values.</param>
    /// <param name="tokens">New tokens n in each row, at least 1.</param>
    /// <param name="counts">How many of the n tokens belong to each sequence (the rest is padding on the right); all n if empty.</param>
    /// <returns>The step: it holds the cache until it is disposed.</returns>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="ArgumentException">There is no sequence, one occurs twice, or a number of tokens is out of range.</exception>
    /// <exception cref="CacheBudgetException">The step needs more memory than is left.</exception>
    /// <exception cref="CacheLimitException">The step has more than <see cref="CacheLimits.MaxStepTokens"/>, or a sequence would have
    /// more than <see cref="CacheLimits.MaxLength"/>.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public CacheStep BeginStep(ReadOnlySpan<int> sequences, int tokens, ReadOnlySpan<int> counts = default)
    {
        using CallGuard.Call call = EnterBetweenSteps();
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(tokens);
        int[] slots = SlotsOf(sequences);
        CacheShape.CheckCounts(counts, slots.Length, tokens);
        int[] all = new int[slots.Length];
        int[] positions = new int[slots.Length];
        long sum = 0;
        for (int b = 0; b < slots.Length; b++)
        {
            all[b] = counts.IsEmpty ? tokens : counts[b];
            sum += all[b];
            positions[b] = PositionAt(slots[b]);
            if (LengthAt(slots[b]) + (long)all[b] is long length && length > Limits.MaxLength)
            {
                throw new CacheLimitException(
                    $"Expected sequences of at most {Limits.MaxLength} tokens, but with {all[b]} more sequence {sequences[b]} would have {length}.");
            }
        }

        if (sum > Limits.MaxStepTokens)
        {
            throw new CacheLimitException($"Expected a step of at most {Limits.MaxStepTokens} tokens, but it has {sum}.");
        }

        Begin(slots, tokens, counts);
        return _step = new CacheStep(this, sequences.ToArray(), tokens, all, positions);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (Guard.Close())
        {
            _step = null;
            Buffers.Dispose();
            Dispose(disposing: true);
            GC.SuppressFinalize(this);
        }
    }

    /// <summary>A layer's part of the current step, from heads that are not rotated yet.</summary>
    internal Tensor Attend(CacheStep step, int layer, RotaryHeads heads, RotaryAngles angles, HeadNorms? norms, double? scale)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        RotaryHeads rotated = heads with { Value = null };
        HeadRotation rotation = new(rotated, DevicePositions(step), angles, norms, output: rotated);
        return Attend(step, layer, heads.Query, heads.Key, heads.Value!, scale, rotation).MoveToOuterDisposeScope();
    }

    /// <summary>A layer's part of the current step.</summary>
    internal Tensor Attend(
        CacheStep step, int layer, Tensor query, Tensor keys, Tensor values, double? scale, HeadRotation? rotation = null)
    {
        using CallGuard.Call call = EnterStep(step);
        ArgumentOutOfRangeException.ThrowIfNegative(layer);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(layer, NumLayers);
        int batch = step.Sequences.Count;
        Shape.CheckNewTokens(keys, values, batch);
        Shape.CheckQuery(query, batch, scale);
        CacheShape.CheckSameTokens(query, keys);
        if (keys.size(2) != step.Tokens)
        {
            throw new ArgumentException($"Expected the {step.Tokens} tokens of the step, but got {keys.size(2)}.", nameof(keys));
        }

        CheckScale(scale);
        if (step.Enter(layer))
        {
            Prepare();
        }

        return Forward(layer, query, keys, values, scale, rotation);
    }

    /// <summary>The position of each new token of the current step.</summary>
    internal Tensor DevicePositions(CacheStep step)
    {
        using CallGuard.Call call = EnterStep(step);
        if (step.Tokens == 1)
        {
            return Positions().unsqueeze(1);
        }

        int[] positions = new int[step.Sequences.Count * step.Tokens];
        for (int i = 0; i < positions.Length; i++)
        {
            positions[i] = step.Positions[i / step.Tokens] + (i % step.Tokens);
        }

        return tensor(positions, device: Device).reshape(-1, step.Tokens);
    }

    /// <summary>What the work of the current step depends on, other than the content of device memory; null if no graph may repeat
    /// it.</summary>
    internal StepLayout? LayoutOf(CacheStep step)
    {
        using CallGuard.Call call = EnterStep(step);
        return step.Tokens == 1 && Device.type == DeviceType.CUDA ? Layout() : null;
    }

    /// <summary>Commits the current step.</summary>
    /// <param name="step">The step.</param>
    /// <param name="partly">Whether layers that have not attended may lack the tokens; they can no longer be used then.</param>
    internal void Commit(CacheStep step, bool partly = false)
    {
        using CallGuard.Call call = EnterStep(step);
        if (!partly)
        {
            step.ThrowIfIncomplete();
        }

        Commit();
        _step = null;
        Settle();
    }

    /// <summary>Rolls the step back, if it is still the current one.</summary>
    internal void Rollback(CacheStep step)
    {
        if (_step != step || Guard.IsDisposed)
        {
            return;
        }

        using CallGuard.Call call = Guard.Enter();
        _step = null;
        Rollback();
    }

    /// <summary>The slots of sequences, each of which may occur once.</summary>
    private protected int[] SlotsOf(ReadOnlySpan<int> sequences)
    {
        if (sequences.IsEmpty)
        {
            throw new ArgumentException("Expected at least one sequence, but got none.", nameof(sequences));
        }

        int[] slots = new int[sequences.Length];
        for (int b = 0; b < slots.Length; b++)
        {
            slots[b] = SlotOf(sequences[b]);
            if (slots.AsSpan(0, b).Contains(slots[b]))
            {
                throw new ArgumentException($"Expected each sequence once, but sequence {sequences[b]} occurs twice.", nameof(sequences));
            }
        }

        return slots;
    }

    /// <summary>Gives sequences the numbers that they have in another cache, in the same slots.</summary>
    private protected void TakeNames(ModelKeyValueCache other)
    {
        foreach ((int sequence, int slot) in other._slots)
        {
            _slots.Add(sequence, slot);
        }

        _nextSequence = other._nextSequence;
    }

    /// <summary>Begins a call that is not allowed during a step.</summary>
    private protected CallGuard.Call EnterBetweenSteps()
    {
        CallGuard.Call call = Guard.Enter();
        if (_step is not null)
        {
            call.Dispose();
            throw new InvalidOperationException("A step is under way; commit or dispose it first.");
        }

        return call;
    }

    /// <summary>Makes room for that many sequences.</summary>
    private protected abstract void Grow(int slots);

    private protected abstract int LengthAt(int slot);

    private protected abstract int PositionAt(int slot);

    private protected abstract void Add(int slot);

    private protected abstract void Remove(int slot);

    private protected abstract void Continue(int slot, int parent);

    private protected abstract void Shorten(int slot, int length, int sequence);

    /// <summary>Begins a step. If it fails, nothing has changed.</summary>
    private protected abstract void Begin(ReadOnlySpan<int> slots, int tokens, ReadOnlySpan<int> counts);

    /// <summary>Computes what all layers of the current step read, before the first of them.</summary>
    private protected virtual void Prepare()
    {
    }

    /// <summary>Adds the tokens to a layer and attends from them, after the rotation of queries and keys if there is one.</summary>
    private protected abstract Tensor Forward(
        int layer, Tensor query, Tensor keys, Tensor values, double? scale, HeadRotation? rotation);

    /// <summary>Positions of the rows of the current step, Int32 [batch], always at the same address.</summary>
    private protected abstract Tensor Positions();

    /// <summary>The result of <see cref="LayoutOf"/> for the current step of one token.</summary>
    private protected abstract StepLayout? Layout();

    private protected abstract void Commit();

    private protected abstract void Rollback();

    /// <summary>Does what follows the commit of a step. If it fails, the tokens of the step have joined nevertheless.</summary>
    private protected virtual void Settle()
    {
    }

    /// <summary>Checks that the scale of the scores is finite.</summary>
    private protected virtual void CheckScale(double? scale)
    {
    }

    /// <summary>Frees the storage. Called once.</summary>
    /// <param name="disposing">False when called from a finaliser.</param>
    protected abstract void Dispose(bool disposing);

    private CallGuard.Call EnterStep(CacheStep step)
    {
        CallGuard.Call call = Guard.Enter();
        if (_step != step)
        {
            call.Dispose();
            throw new InvalidOperationException("The step has ended; begin another.");
        }

        return call;
    }

    /// <summary>The slot of a sequence.</summary>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    private protected int SlotOf(int sequence) =>
        _slots.TryGetValue(sequence, out int slot) ? slot : throw new SequenceNotFoundException(sequence);

    private int TakeSlot()
    {
        int slot = 0;
        for (HashSet<int> taken = [.. _slots.Values]; taken.Contains(slot); slot++)
        {
        }

        if (slot >= Limits.MaxSequences)
        {
            throw new CacheLimitException($"Expected at most {Limits.MaxSequences} sequences, which there are already. Remove one first.");
        }

        if (slot >= Slots)
        {
            Grow(checked(Slots + Math.Max(1, Slots / 8)));
        }

        return slot;
    }

    private int Name(int slot)
    {
        int sequence = checked(_nextSequence++);
        _slots.Add(sequence, slot);
        return sequence;
    }
}
