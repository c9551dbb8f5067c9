using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>One layer's dense keys and values of sequences in slots: a block of [slots, num_kv_heads, capacity, head_dim] each.</summary>
/// <remarks>
/// Places past a sequence's length hold finite numbers: a masked one has weight 0, and 0 · NaN would be NaN. The capacity is that of the
/// longest sequence, and the same for all.
/// </remarks>
internal sealed class DenseStorage(CacheShape shape, int slots, int? slidingWindow, DenseKernel? kernel) : IDisposable
{
    private const int CapacityStep = 64;

    private readonly CacheShape _shape = shape;
    private int _slots = slots;
    private Tensor? _keys;
    private Tensor? _values;

    // Whether no stored token holds NaN or infinity, with and without the current step. Kept so that a step only checks its own tokens.
    private bool _isFinite = true;
    private bool _wasFinite = true;

    /// <summary>A token sees only that many of the latest tokens, including itself; all if null.</summary>
    internal int? SlidingWindow => slidingWindow;

    /// <summary>Number of tokens that there is room for in each slot.</summary>
    internal int Capacity { get; private set; }

    /// <summary>A capacity for that many tokens, at least an eighth more than the present one.</summary>
    internal static int CapacityFor(int tokens, int present = 0)
    {
        long wanted = tokens <= present ? present : Math.Max(tokens, present + (present / 8L));
        return checked((int)((wanted + CapacityStep - 1) / CapacityStep * CapacityStep));
    }

    /// <summary>Bytes of storage for that many tokens.</summary>
    internal KeyValueCacheMemory MemoryOf(long tokens) => new(
        CompressedBytes: 0,
        WindowBytes: (long)_slots * Capacity * _shape.TokenBytes,
        UsedBytes: tokens * _shape.TokenBytes,
        DenseBytes: tokens * _shape.TokenBytes,
        Fp16Bytes: tokens * 2 * _shape.NumKvHeads * _shape.HeadDim * 2);

    /// <summary>Address of a slot's keys; 0 before the first token.</summary>
    internal nint AddressOf(int slot) => _keys is null ? 0 : AddressOf(_keys) + (nint)(slot * _keys.stride(0) * _shape.ElementBytes);

    /// <summary>Makes room for that many tokens.</summary>
    internal void Reserve(int capacity)
    {
        if (capacity > Capacity)
        {
            Resize(_slots, capacity);
        }
    }

    /// <summary>Makes room for that many slots.</summary>
    internal void Grow(int slots) => Resize(slots, Capacity);

    /// <summary>Adds a step's tokens, for which there is room, and attends from them. If it fails, <see cref="Rollback"/> undoes what it
    /// did.</summary>
    /// <param name="step">The step.</param>
    /// <param name="decode">Computes the attention of a step of one token that was planned for it; null if there is none.</param>
    /// <param name="query">Queries [batch, num_heads, n, head_dim].</param>
    /// <param name="keys">Keys [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="values">Values [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="scale">Factor of the scores; 1/√head_dim if null.</param>
    /// <param name="rotation">Still to be applied to queries and keys; none if null. What the keys hold afterwards is unspecified.</param>
    internal Tensor Forward(
        DenseStep step, DenseDecode? decode, Tensor query, Tensor keys, Tensor values, double? scale, HeadRotation? rotation = null)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        if (step.Longest == 0)
        {
            return zeros_like(query).MoveToOuterDisposeScope();
        }

        if (decode is not null)
        {
            return decode.Forward(step, _keys!, _values!, SlidingWindow, query, keys, values, scale, rotation).MoveToOuterDisposeScope();
        }

        rotation?.Apply();
        _isFinite = _wasFinite && DenseAttention.IsFinite(keys, values);
        Write(step, _keys!, keys);
        Write(step, _values!, values);
        return Attend(step, query, scale).MoveToOuterDisposeScope();
    }

    /// <summary>Commits a step.</summary>
    internal void Commit() => _wasFinite = _isFinite;

    /// <summary>Restores the storage to its state before a step, however much of the step was done.</summary>
    internal void Rollback(DenseStep step)
    {
        for (int b = 0; b < step.Slots.Length; b++)
        {
            Clear(step.Slots[b], step.Before[b], step.After[b]);
        }

        _isFinite = _wasFinite;
    }

    /// <summary>Removes a sequence's last tokens, those in a range of places.</summary>
    internal void Erase(int slot, int first, int end)
    {
        Clear(slot, first, end);
        _isFinite = _isFinite || _keys is null || DenseAttention.IsFinite(_keys, _values!);
        Commit();
    }

    /// <summary>Copies a sequence of this storage or of one of the same capacity.</summary>
    internal void Continue(int slot, DenseStorage source, int parent)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        _keys?[slot].copy_(source._keys![parent]);
        _values?[slot].copy_(source._values![parent]);
        _isFinite &= source._isFinite;
        Commit();
    }

    public void Dispose()
    {
        _keys?.Dispose();
        _values?.Dispose();
    }

    private static unsafe nint AddressOf(Tensor tensor) => (nint)TensorAccess.Pointer(tensor);

    private void Resize(int slots, int capacity)
    {
        if (capacity > 0)
        {
            using IDisposable noGrad = no_grad();
            using DisposeScope scope = NewDisposeScope();
            (Tensor keys, Tensor values) = _shape.Allocate(slots, capacity);
            if (_keys is not null)
            {
                keys.narrow(0, 0, _slots).narrow(2, 0, Capacity).copy_(_keys);
                values.narrow(0, 0, _slots).narrow(2, 0, Capacity).copy_(_values!);
            }

            Dispose();
            (_keys, _values) = (keys, values);
        }

        (_slots, Capacity) = (slots, capacity);
    }

    // Resets places to their state before any token was there.
    private void Clear(int slot, int first, int end)
    {
        if (first < end)
        {
            using IDisposable noGrad = no_grad();
            using DisposeScope scope = NewDisposeScope();
            _keys![slot].narrow(1, first, end - first).zero_();
            _values![slot].narrow(1, first, end - first).zero_();
        }
    }

    private static void Write(DenseStep step, Tensor destination, Tensor source)
    {
        if (step.IsUniform && step.IsRun)
        {
            step.Rows(destination).narrow(2, step.Before[0], step.Tokens).copy_(source);
            return;
        }

        for (int b = 0; b < step.Slots.Length; b++)
        {
            if (step.Counts[b] is > 0 and int count)
            {
                destination[step.Slots[b]].narrow(1, step.Before[b], count).copy_(source[b].narrow(1, 0, count));
            }
        }
    }

    // The new tokens are already in storage.
    private Tensor Attend(DenseStep step, Tensor query, double? scale)
    {
        if (kernel is not null && DenseKernel.Takes(step, scale))
        {
            return kernel.Forward(step, _keys!, _values!, SlidingWindow, query, scale);
        }

        int first = SlidingWindow is int window ? (int)Math.Max(0, step.Before.Min() + 1L - window) : 0;
        Tensor keys = step.Rows(_keys!.narrow(2, first, step.Longest - first));
        Tensor values = step.Rows(_values!.narrow(2, first, step.Longest - first));
        if (step.IsUniform && step.Before[0] == 0)
        {
            return DenseAttention.Causal(query, keys, values, scale, SlidingWindow);
        }

        if (step.IsUniform && step.Tokens > 1 && SlidingWindow is null && FusedAttention.HasFlash(query))
        {
            return PartialAttention.Causal(query, keys, values, scale ?? 1 / Math.Sqrt(_shape.HeadDim)).Output;
        }

        Tensor? mask = step.IsUniform && step.Tokens == 1 ? null : VisibleKeys(step, first);
        bool finite = _isFinite && DenseAttention.IsFinite(query);
        Tensor output = DenseAttention.Forward(query, keys, values, scale, mask, causal: false, finite);
        return step.IsPadded ? output.masked_fill(Padding(step), Scalars.Zero) : output;
    }

    // True for tokens that a query sees, [batch or 1, 1, tokens, longest - first]: key j of query i if j ≤ past + i and within the window.
    // A sequence's padding comes after all of its real queries, each of which sees itself. Without a window padding sees slot 0; with one
    // it may see nothing, and what the softmax makes of that is masked.
    private Tensor VisibleKeys(DenseStep step, int first)
    {
        int[] past = step.IsUniform ? step.Before[..1] : step.Before;
        Tensor position = tensor(past, dtype: ScalarType.Int64, device: _shape.Device).reshape(-1, 1, 1, 1)
            .add(Scalars.Range(0, step.Tokens, _shape.Device).reshape(1, 1, -1, 1), Scalars.One);
        Tensor key = Scalars.Range(first, step.Longest - first, _shape.Device).reshape(1, 1, 1, -1);
        Tensor visible = key.le(position);
        if (SlidingWindow is int window)
        {
            Scalar limit = window;
            visible = visible.logical_and((position - key).lt(limit));
            GC.KeepAlive(limit);
        }

        return visible;
    }

    private Tensor Padding(DenseStep step) => Scalars.Range(0, step.Tokens, _shape.Device).reshape(1, 1, -1, 1)
        >= tensor(step.Counts, dtype: ScalarType.Int64, device: _shape.Device).reshape(-1, 1, 1, 1);
}
