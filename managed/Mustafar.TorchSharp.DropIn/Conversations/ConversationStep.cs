using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>The current step of a conversation: the layers that have been called, and the masks that they were given.</summary>
/// <remarks>
/// A step is over as soon as one of its layers is called again. A model passes the same mask to many layers, and reading one needs a
/// synchronisation with the device, so the result is kept for the step. The next step reads its masks again, since they may have
/// been written in place.
/// </remarks>
internal sealed class ConversationStep
{
    private sealed record Reading(WeakReference<Tensor> Mask, int Start, int[] Before, int[] Padding);

    private readonly HashSet<AttentionLayer> _visited = [];
    private readonly List<Reading> _readings = [];
    private (int Start, long Batch, long Tokens) _tokens;

    /// <summary>Records a layer's call, which may be the first of a new step.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="step">What it was called with.</param>
    internal void Visit(AttentionLayer layer, AttentionStep step)
    {
        if (!_visited.Add(layer))
        {
            _visited.Clear();
            _visited.Add(layer);
            _readings.Clear();
        }

        _tokens = TokensOf(step);
    }

    /// <summary>Whether a layer has been called.</summary>
    internal bool Visited(AttentionLayer layer) => _visited.Contains(layer);

    /// <summary>Whether another layer's call has the tokens of this step.</summary>
    internal bool HasTokensOf(AttentionStep step) => _tokens == TokensOf(step);

    /// <summary>What was read from a mask in this step; null if it was not read.</summary>
    internal int[]? Find(Tensor mask, int start, int[] before) => _readings.Find(reading =>
        reading.Mask.TryGetTarget(out Tensor? read) && ReferenceEquals(read, mask)
        && reading.Start == start && reading.Before.AsSpan().SequenceEqual(before))?.Padding;

    /// <summary>Keeps what was read from a mask.</summary>
    internal void Add(Tensor mask, int start, int[] before, int[] padding) =>
        _readings.Add(new Reading(new WeakReference<Tensor>(mask), start, before, padding));

    private static (int Start, long Batch, long Tokens) TokensOf(AttentionStep step) =>
        (step.Start, step.Keys.size(0), step.Keys.size(2));
}
