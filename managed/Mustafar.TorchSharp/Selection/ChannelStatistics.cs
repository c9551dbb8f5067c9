using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What a selection gathers about each sequence until its first tokens are compressed, and the channel importance that follows
/// from it.</summary>
/// <remarks>All tensors are Float32 [slots, num_kv_heads, head_dim].</remarks>
internal sealed class ChannelStatistics : IDisposable
{
    /// <summary>Number of latest queries that count.</summary>
    internal const int MostQueries = 32;

    private readonly CacheShape _shape;
    private readonly SelectionRule _rule;
    private readonly int _kept;
    private readonly List<(int Slot, Tensor[] Rows)> _before = []; // as they were before the current step

    private ChannelStatistics(CacheShape shape, SelectionRule rule, int kept, int slots)
    {
        (_shape, _rule, _kept) = (shape, rule, kept);
        Queries = rule is SelectionRule.OutputAware or SelectionRule.StructuredKeys ? Allocate(slots) : null;
        Tokens = rule is SelectionRule.StructuredKeys or SelectionRule.StructuredValues ? Allocate(slots) : null;
        Importance = rule == SelectionRule.OutputAware ? Queries! : Allocate(slots);
    }

    /// <summary>Σ|q| or Σq² over queries; null if queries don't count.</summary>
    internal Tensor? Queries { get; }

    /// <summary>Σx² over keys or values; null if they don't count.</summary>
    internal Tensor? Tokens { get; }

    /// <summary>What magnitudes are multiplied by.</summary>
    internal Tensor Importance { get; }

    /// <summary>The statistics of a selection; null if it gathers none.</summary>
    /// <param name="selection">The selection.</param>
    /// <param name="shape">Heads and head_dim.</param>
    /// <param name="kept">Number of channels kept per token.</param>
    /// <param name="slots">Number of sequences that there is room for.</param>
    internal static ChannelStatistics? For(ChannelSelection selection, CacheShape shape, int kept, int slots) =>
        SlotBytes(selection, shape, kept) == 0 ? null : new ChannelStatistics(shape, selection.Rule, kept, slots);

    /// <summary>Bytes of one slot.</summary>
    internal static long SlotBytes(ChannelSelection selection, CacheShape shape, int kept)
    {
        int tensors = kept == shape.HeadDim ? 0 : selection.Rule switch
        {
            SelectionRule.OutputAware => 1,
            SelectionRule.StructuredValues => 2,
            SelectionRule.StructuredKeys => 3,
            _ => 0,
        };
        return tensors * (long)shape.NumKvHeads * shape.HeadDim * sizeof(float);
    }

    /// <summary>Adds a step's tokens, for sequences that have no compressed tokens.</summary>
    /// <param name="plan">The step.</param>
    /// <param name="query">[batch, num_heads, n, head_dim]; null only if queries don't count.</param>
    /// <param name="tokens">Keys or values [batch, num_kv_heads, n, head_dim].</param>
    internal void Add(StepPlan plan, Tensor? query, Tensor tokens)
    {
        using IDisposable noGrad = no_grad();
        Commit();
        for (int b = 0; b < plan.Batch; b++)
        {
            if (!plan.IsUncompressed(b) || plan.Counts[b] == 0)
            {
                continue;
            }

            using DisposeScope scope = NewDisposeScope();
            int slot = plan.Slots[b], count = plan.Counts[b];
            _before.Add((slot, [.. All().Select(tensor => tensor[slot].clone().DetachFromDisposeScope())]));
            bool isFirst = plan.Length(b) == 0;
            if (Queries is not null)
            {
                int last = Math.Min(count, MostQueries);
                Tensor rows = query![b].narrow(1, count - last, last).to(ScalarType.Float32).reshape(_shape.NumKvHeads, -1, _shape.HeadDim);
                Accumulate(Queries[slot], _rule == SelectionRule.OutputAware ? rows.abs() : rows.square(), isFirst || count >= MostQueries);
            }

            if (Tokens is not null)
            {
                Accumulate(Tokens[slot], tokens[b].narrow(1, 0, count).to(ScalarType.Float32).square(), isFirst);
            }

            Weigh(slot);
        }
    }

    /// <summary>Whether <see cref="Add"/> uses any of a step's tokens.</summary>
    internal static bool Counts(StepPlan plan)
    {
        for (int b = 0; b < plan.Batch; b++)
        {
            if (plan.IsUncompressed(b))
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>Recomputes a sequence's importance, after its statistics came from elsewhere.</summary>
    internal void Weigh(int slot)
    {
        if (Tokens is null)
        {
            return;
        }

        using DisposeScope scope = NewDisposeScope();
        Tensor norms = Tokens[slot].sqrt();
        Tensor scores = Queries is null ? norms : norms * Queries[slot].sqrt();
        Tensor largest = sort(scores, 1, descending: true, stable: true).indices.narrow(1, 0, _kept); // of equal ones the lower
        Importance[slot].zero_().scatter_(1, largest, ones_like(largest, dtype: ScalarType.Float32));
    }

    /// <summary>Commits a step.</summary>
    internal void Commit()
    {
        _before.ForEach(row => Array.ForEach(row.Rows, tensor => tensor.Dispose()));
        _before.Clear();
    }

    /// <summary>Undoes a step.</summary>
    internal void Rollback()
    {
        foreach ((int slot, Tensor[] rows) in _before)
        {
            foreach ((Tensor tensor, Tensor row) in All().Zip(rows))
            {
                tensor[slot].copy_(row);
            }
        }

        Commit();
    }

    /// <summary>A copy with room for the given number of slots.</summary>
    internal ChannelStatistics Grown(int slots)
    {
        ChannelStatistics grown = new(_shape, _rule, _kept, slots);
        foreach ((Tensor target, Tensor source) in grown.All().Zip(All()))
        {
            target.narrow(0, 0, source.size(0)).copy_(source);
        }

        return grown;
    }

    /// <summary>Copies the statistics of the sequence that this one continues.</summary>
    internal void Continue(int slot, ChannelStatistics source, int parent)
    {
        foreach ((Tensor target, Tensor other) in All().Zip(source.All()))
        {
            target[slot].copy_(other[parent]);
        }
    }

    public void Dispose()
    {
        Commit();
        foreach (Tensor tensor in All())
        {
            tensor.Dispose();
        }
    }

    private static void Accumulate(Tensor sum, Tensor rows, bool anew)
    {
        (anew ? sum.zero_() : sum).add_(rows.sum(1), Scalars.One);
    }

    private IEnumerable<Tensor> All()
    {
        if (Queries is not null)
        {
            yield return Queries;
        }

        if (Tokens is not null)
        {
            yield return Tokens;
            yield return Importance;
        }
    }

    private Tensor Allocate(int slots)
    {
        using IDisposable mode = inference_mode(false);
        return zeros([slots, _shape.NumKvHeads, _shape.HeadDim], dtype: ScalarType.Float32, device: _shape.Device).DetachFromDisposeScope();
    }
}
