using static TorchSharp.torch;

namespace Mustafar;

/// <summary>The masks of one step of a conversation, as its first layers read them.</summary>
/// <remarks>
/// A model hands the same mask to many layers, and reading one takes a synchronisation with the device. A step is over as soon as one of
/// its layers is called again; the next one reads its masks anew, for they may have been written to in place.
/// </remarks>
internal sealed class StepMasks
{
    private sealed record Reading(WeakReference<Tensor> Mask, int Start, int[] Before, int[] Padding);

    private readonly HashSet<AttentionLayer> _visited = [];
    private readonly List<Reading> _readings = [];

    /// <summary>Notes a layer's call, which may be the first of a new step.</summary>
    internal void Visit(AttentionLayer layer)
    {
        if (!_visited.Add(layer))
        {
            _visited.Clear();
            _visited.Add(layer);
            _readings.Clear();
        }
    }

    /// <summary>What a mask was read as in this step; null if it was not.</summary>
    internal int[]? Find(Tensor mask, int start, int[] before) => _readings.Find(reading =>
        reading.Mask.TryGetTarget(out Tensor? read) && ReferenceEquals(read, mask)
        && reading.Start == start && reading.Before.AsSpan().SequenceEqual(before))?.Padding;

    /// <summary>Remembers what a mask was read as.</summary>
    internal void Add(Tensor mask, int start, int[] before, int[] padding) =>
        _readings.Add(new Reading(new WeakReference<Tensor>(mask), start, before, padding));
}
