using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>The latest queries of each sequence in one layer, for a selection that weighs tokens by the attention that they receive.</summary>
/// <remarks>What a step adds counts once the step is committed.</remarks>
internal sealed class RecentQueries : IDisposable
{
    /// <summary>Number of queries kept per sequence.</summary>
    internal const int Most = ChannelStatistics.MostQueries;

    private readonly Dictionary<int, AttentionHistory> _histories = [];
    private readonly List<(int Slot, Tensor Queries)> _added = [];
    private long _bytes;

    /// <summary>Bytes of all sequences' queries. Any thread may read it.</summary>
    internal long Bytes => Volatile.Read(ref _bytes);

    /// <summary>Number of query heads; 0 while there are no queries.</summary>
    internal int Heads => (int)(_histories.Values.FirstOrDefault(history => history.Queries is not null)?.Queries!.size(0) ?? 0);

    /// <summary>The queries of a selection; null if it needs none.</summary>
    /// <param name="selection">The selection.</param>
    /// <param name="kept">Number of channels kept per token.</param>
    /// <param name="headDim">Number of channels.</param>
    internal static RecentQueries? For(ChannelSelection selection, int kept, int headDim) =>
        selection.Rule == SelectionRule.PerChannelOutputAware && kept < headDim ? new RecentQueries() : null;

    /// <summary>Records a step's queries.</summary>
    /// <param name="plan">The step.</param>
    /// <param name="query">[batch, num_heads, n, head_dim].</param>
    /// <exception cref="ArgumentException">Earlier queries had a different number of heads.</exception>
    internal void Add(StepPlan plan, Tensor query)
    {
        if (Heads is int heads && heads > 0 && heads != query.size(1))
        {
            throw new ArgumentException($"Expected queries of {heads} heads, as those before, but got {query.size(1)}.", nameof(query));
        }

        for (int b = 0; b < plan.Batch; b++)
        {
            using DisposeScope scope = NewDisposeScope();
            int count = plan.Counts[b], last = Math.Min(count, Most);
            if (last > 0)
            {
                _added.Add((plan.Slots[b], query[b].narrow(1, count - last, last).clone().DetachFromDisposeScope()));
            }
        }
    }

    /// <summary>The latest queries of a sequence, with some of the current step, [num_heads, 1 to <see cref="Most"/>, head_dim]; null if
    /// there are none.</summary>
    /// <param name="slot">The sequence.</param>
    /// <param name="added">The queries of the step, [num_heads, count, head_dim].</param>
    internal Tensor? Latest(int slot, Tensor added)
    {
        Tensor? before = _histories.GetValueOrDefault(slot)?.Queries;
        Tensor all = before is null ? added : cat([before, added], 1);
        long count = Math.Min(all.size(1), Most);
        return count == 0 ? null : all.narrow(1, all.size(1) - count, count);
    }

    /// <summary>Commits a step.</summary>
    internal void Commit()
    {
        foreach ((int slot, Tensor queries) in _added)
        {
            Find(slot).Add(queries, Most);
        }

        Rollback();
        CountBytes();
    }

    /// <summary>Undoes a step.</summary>
    internal void Rollback()
    {
        _added.ForEach(added => added.Queries.Dispose());
        _added.Clear();
    }

    /// <summary>Discards the queries of a sequence's latest tokens.</summary>
    internal void Shorten(int slot, int dropped)
    {
        if (_histories.TryGetValue(slot, out AttentionHistory? history))
        {
            history.Shorten(0, dropped);
            CountBytes();
        }
    }

    /// <summary>Discards a sequence.</summary>
    internal void Remove(int slot)
    {
        if (_histories.Remove(slot, out AttentionHistory? history))
        {
            history.Dispose();
            CountBytes();
        }
    }

    /// <summary>Copies the queries of a sequence to one that continues it.</summary>
    internal void Continue(int slot, RecentQueries source, int parent)
    {
        Remove(slot);
        if (source._histories.TryGetValue(parent, out AttentionHistory? history))
        {
            _histories[slot] = history.Copy();
            CountBytes();
        }
    }

    /// <summary>The number of queries of each sequence.</summary>
    internal int[] Counts(int[] slots) => [.. slots.Select(slot => (int)(_histories.GetValueOrDefault(slot)?.Queries?.size(1) ?? 0))];

    /// <summary>The queries of sequences, on the CPU, [slots, num_heads, <see cref="Most"/>, head_dim]: in order, padded with
    /// zeros.</summary>
    internal Tensor Padded(int[] slots, CacheShape shape)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        Tensor all = zeros([slots.Length, Heads, Most, shape.HeadDim], dtype: shape.DType, device: CPU);
        for (int b = 0; b < slots.Length; b++)
        {
            if (_histories.GetValueOrDefault(slots[b])?.Queries is Tensor queries)
            {
                all[b].narrow(1, 0, queries.size(1)).copy_(queries);
            }
        }

        return all.MoveToOuterDisposeScope();
    }

    /// <summary>What is wrong with queries from a file for sequences of given lengths; null if nothing is.</summary>
    internal string? FindProblem(long heads, int[] counts, int[] lengths, int kvHeads)
    {
        if (heads % kvHeads != 0 || (Heads > 0 && heads > 0 && heads != Heads))
        {
            return $"expected queries of {(Heads > 0 ? $"{Heads}" : $"a multiple of {kvHeads}")} heads, but got {heads}.";
        }

        for (int b = 0; b < counts.Length; b++)
        {
            int most = heads == 0 ? 0 : Math.Min(Most, lengths[b]);
            if (counts[b] < 0 || counts[b] > most)
            {
                return $"expected 0 to {most} queries of sequence {b}, but got {counts[b]}.";
            }
        }

        return null;
    }

    /// <summary>Replaces the queries of sequences with those from a file.</summary>
    internal void Restore(int[] slots, Tensor padded, int[] counts, CacheShape shape)
    {
        for (int b = 0; b < slots.Length; b++)
        {
            Remove(slots[b]);
            if (counts[b] > 0)
            {
                using DisposeScope scope = NewDisposeScope();
                Find(slots[b]).Add(padded[b].narrow(1, 0, counts[b]).to(shape.Device), Most);
            }
        }

        CountBytes();
    }

    public void Dispose()
    {
        Rollback();
        foreach (AttentionHistory history in _histories.Values)
        {
            history.Dispose();
        }

        _histories.Clear();
    }

    private AttentionHistory Find(int slot)
    {
        if (!_histories.TryGetValue(slot, out AttentionHistory? history))
        {
            _histories[slot] = history = new AttentionHistory();
        }

        return history;
    }

    private void CountBytes() => Volatile.Write(ref _bytes, _histories.Values.Sum(history => history.Bytes));
}
