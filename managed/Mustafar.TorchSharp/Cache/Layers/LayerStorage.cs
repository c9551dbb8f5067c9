using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What one layer stores of a cache's sequences: its pages' format, the ring of dense tokens, the sinks.</summary>
/// <remarks>The <see cref="SequenceTable"/> knows which tokens they are, for all layers.</remarks>
internal sealed unsafe partial class LayerStorage : IDisposable
{
    private readonly CacheShape _shape;
    private readonly SequenceTable _table;
    private readonly StepWorkspace _workspace;
    private readonly int _index;
    private int _tailCapacity;
    private Tensor _tailKeys;
    private Tensor _tailValues;
    private NativeDense _denseTailKeys;
    private NativeDense _denseTailValues;

    /// <summary>Makes a layer with as many slots as a table.</summary>
    /// <param name="shape">Heads, head_dim, dtype and device.</param>
    /// <param name="options">How it prunes, and its sliding window.</param>
    /// <param name="format">Its format, according to the options.</param>
    /// <param name="table">The sequences.</param>
    /// <param name="index">Index of the layer in the table's pages.</param>
    /// <param name="workspace">The workspace of its attention.</param>
    /// <param name="ring">Number of places in the ring.</param>
    internal LayerStorage(
        CacheShape shape, MustafarOptions options, LayerFormat format, SequenceTable table, int index, StepWorkspace workspace, int ring)
    {
        (_shape, Options, Format, _table, _index, _workspace, _tailCapacity) = (shape, options, format, table, index, workspace, ring);
        (_tailKeys, _tailValues) = shape.Allocate(table.Slots, _tailCapacity);
        (_denseTailKeys, _denseTailValues) = (TensorAccess.Dense(_tailKeys), TensorAccess.Dense(_tailValues));
        try
        {
            Sinks = options.SinkTokens == 0 ? null : new AttentionSinks(shape, options.SinkTokens, table.Slots);
            KeyScales = NewKeyScales(table.Slots);
            KeyStatistics = ChannelStatistics.For(options.KeySelection, shape, format.Keys.Keep, table.Slots);
            ValueStatistics = ChannelStatistics.For(options.ValueSelection, shape, format.Values.Keep, table.Slots);
            RecentQueries = RecentQueries.For(options.ValueSelection, format.Values.Keep, shape.HeadDim);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    internal MustafarOptions Options { get; }

    internal LayerFormat Format { get; }

    internal AttentionSinks? Sinks { get; private set; }

    /// <summary>Channel scales of keys, Float32 [slots, num_kv_heads, head_dim]; null if they have none. Those of a slot are computed at
    /// its first compression and have no meaning before.</summary>
    internal Tensor? KeyScales { get; private set; }

    /// <summary>Address of its ring.</summary>
    internal nint Address => (nint)_denseTailKeys.Data;

    /// <summary>Bytes of the ring and the sinks of one slot.</summary>
    internal static long SlotBytes(CacheShape shape, int ring, int sinks) => (ring * shape.TokenBytes) + AttentionSinks.SlotBytes(shape, sinks);

    /// <summary>Makes room for that many slots.</summary>
    internal void Grow(int slots)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        AttentionSinks? sinks = Sinks?.Grown(slots);
        (Tensor keys, Tensor values) = _shape.Allocate(slots, _tailCapacity);
        Tensor? scales = NewKeyScales(slots);
        (ChannelStatistics? ofKeys, ChannelStatistics? ofValues) = (KeyStatistics?.Grown(slots), ValueStatistics?.Grown(slots));
        keys.narrow(0, 0, _tailKeys.size(0)).copy_(_tailKeys);
        values.narrow(0, 0, _tailValues.size(0)).copy_(_tailValues);
        scales?.narrow(0, 0, KeyScales!.size(0)).copy_(KeyScales);
        DisposeSlots();
        (_tailKeys, _tailValues, KeyScales, Sinks) = (keys, values, scales, sinks);
        (KeyStatistics, ValueStatistics) = (ofKeys, ofValues);
        (_denseTailKeys, _denseTailValues) = (TensorAccess.Dense(keys), TensorAccess.Dense(values));
    }

    /// <summary>A copy of the ring with that many places, at least as many as a sequence has dense tokens.</summary>
    internal RingTensors CopyRing(int places)
    {
        (Tensor keys, Tensor values) = _shape.Allocate(_table.Slots, places);
        RingTensors ring = new(keys, values);
        try
        {
            if (_table.MostCompressed == 0)
            {
                // In both rings each token is at its number modulo the size.
                int most = _table.MostDense;
                keys.narrow(2, 0, most).copy_(_tailKeys.narrow(2, 0, most));
                values.narrow(2, 0, most).copy_(_tailValues.narrow(2, 0, most));
                return ring;
            }

            for (int slot = 0; slot < _table.Slots; slot++)
            {
                if (_table.Find(slot) is Sequence sequence)
                {
                    CopyRing(sequence, _tailKeys[slot], keys[slot]);
                    CopyRing(sequence, _tailValues[slot], values[slot]);
                }
            }

            return ring;
        }
        catch
        {
            ring.Dispose();
            throw;
        }
    }

    /// <summary>Continues with another ring of the same tokens.</summary>
    internal void Take(RingTensors ring)
    {
        _tailKeys.Dispose();
        _tailValues.Dispose();
        (_tailKeys, _tailValues, _tailCapacity) = (ring.Keys, ring.Values, checked((int)ring.Keys.size(2)));
        (_denseTailKeys, _denseTailValues) = (TensorAccess.Dense(_tailKeys), TensorAccess.Dense(_tailValues));
    }

    /// <summary>Copies the dense data of a sequence: its pages are shared through the table.</summary>
    internal void Continue(int slot, LayerStorage source, int parent)
    {
        using DisposeScope scope = NewDisposeScope();
        _tailKeys[slot].copy_(source._tailKeys[parent]);
        _tailValues[slot].copy_(source._tailValues[parent]);
        KeyScales?[slot].copy_(source.KeyScales![parent]);
        Sinks?.Continue(slot, source.Sinks!, parent);
        KeyStatistics?.Continue(slot, source.KeyStatistics!, parent);
        ValueStatistics?.Continue(slot, source.ValueStatistics!, parent);
        RecentQueries?.Continue(slot, source.RecentQueries!, parent);
    }

    public void Dispose()
    {
        DisposeSlots();
        RecentQueries?.Dispose();
    }

    private void DisposeSlots()
    {
        _tailKeys.Dispose();
        _tailValues.Dispose();
        KeyScales?.Dispose();
        Sinks?.Dispose();
        KeyStatistics?.Dispose();
        ValueStatistics?.Dispose();
    }

    // Copies dense tokens of a sequence from one ring [num_kv_heads, places, head_dim] to another one, in runs: either may wrap around.
    private static void CopyRing(Sequence sequence, Tensor source, Tensor destination)
    {
        for (long token = sequence.Compressed, run; token < sequence.Length; token += run)
        {
            (long from, long to) = (token % source.size(1), token % destination.size(1));
            run = Math.Min(sequence.Length - token, Math.Min(source.size(1) - from, destination.size(1) - to));
            destination.narrow(1, to, run).copy_(source.narrow(1, from, run));
        }
    }

    private Tensor? NewKeyScales(int slots)
    {
        using IDisposable mode = inference_mode(false);
        return Format.KeyScaleBytes == 0
            ? null
            : zeros([slots, _shape.NumKvHeads, _shape.HeadDim], dtype: ScalarType.Float32, device: _shape.Device).DetachFromDisposeScope();
    }

    // The channel scales of all slots' keys, or of those from a given one on; null if they have none.
    private float* KeyScalesFrom(int firstSlot) => KeyScales is null
        ? null
        : (float*)TensorAccess.Pointer(KeyScales) + (firstSlot * (long)_shape.NumKvHeads * _shape.HeadDim);

    // The compressed keys (or values) of all slots, or of those from a given one on.
    private NativeBlocks Blocks(bool keys, int firstSlot = 0) => _table.Place(
        new NativeBlocks { Format = keys ? Format.Keys : Format.Values, Base = keys ? 0 : Format.KeyBytes }, _index, firstSlot);

    /// <summary>A ring of dense tokens, [slots, num_kv_heads, places, head_dim] each.</summary>
    internal sealed record RingTensors(Tensor Keys, Tensor Values) : IDisposable
    {
        public void Dispose()
        {
            Keys.Dispose();
            Values.Dispose();
        }
    }
}
