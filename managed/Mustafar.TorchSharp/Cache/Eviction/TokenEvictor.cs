using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Tracks the attention of a store's sequences, and chooses the tokens that stay.</summary>
/// <remarks>The contribution of a step counts once the step is committed.</remarks>
internal sealed class TokenEvictor(TokenEviction options, SequenceTable table, IReadOnlyList<LayerStorage> layers) : IDisposable
{
    // Number of queries whose attention is summed at once.
    private const int QueryBlock = 64;

    private readonly Dictionary<(int Slot, int Layer), AttentionHistory> _histories = [];
    private readonly List<Observation> _observed = [];
    private double _scale;
    private long _bytes;

    /// <summary>Bytes of what is recorded about all sequences. Any thread may read it.</summary>
    internal long Bytes => Volatile.Read(ref _bytes);

    /// <summary>Records a layer's part of a step, once its tokens are stored.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="plan">The step.</param>
    /// <param name="query">Queries [batch, num_heads, n, head_dim].</param>
    /// <param name="scale">Factor of the scores.</param>
    internal void Observe(int layer, StepPlan plan, Tensor query, double scale)
    {
        if (options.Method == TokenEvictionMethod.FirstAndRecent)
        {
            return;
        }

        _scale = scale;
        for (int b = 0; b < plan.Batch; b++)
        {
            int count = plan.Counts[b], before = plan.SinksBefore[b] + plan.Length(b);
            if (count == 0)
            {
                continue;
            }

            using DisposeScope scope = NewDisposeScope();
            Tensor queries = query[b].narrow(1, 0, count);
            if (options.Method == TokenEvictionMethod.AccumulatedAttention && count > QueryBlock)
            {
                // A prompt: it has too many queries to keep.
                int sinks = plan.SinksBefore[b] + plan.SinksTaken[b];
                Tensor keys = layers[layer].Stored(plan.Slots[b], sinks, plan.NextCompressed(b), plan.LengthAfter(b), ofKeys: true);
                Tensor received = AttentionHistory.Received(queries, sinks + plan.LengthAfter(b) - count, keys, scale);
                _observed.Add(new Observation(plan.Slots[b], layer, before, null, received.DetachFromDisposeScope()));
            }
            else
            {
                int kept = Math.Min(count, MostQueries);
                Tensor latest = queries.narrow(1, count - kept, kept).clone();
                _observed.Add(new Observation(plan.Slots[b], layer, before, latest.DetachFromDisposeScope(), null));
            }
        }
    }

    /// <summary>Keeps the contribution of the step, which is committed.</summary>
    internal void Commit()
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        foreach (Observation observed in _observed)
        {
            AttentionHistory history = Find(observed.Slot, observed.Layer);
            if (observed.Received is not null)
            {
                Accumulate(history, observed.Slot, observed.Layer, observed.TokensBefore);
                history.AddScores(observed.Received);
                continue;
            }

            history.Add(observed.Queries!, MostQueries);
            if (options.Method == TokenEvictionMethod.AccumulatedAttention && history.Queries!.size(1) >= QueryBlock)
            {
                Accumulate(history, observed.Slot, observed.Layer, table[observed.Slot].Tokens);
            }
        }

        Rollback();
        CountBytes();
    }

    /// <summary>Discards the step.</summary>
    internal void Rollback()
    {
        _observed.ForEach(observed => observed.Dispose());
        _observed.Clear();
    }

    /// <summary>Discards a sequence.</summary>
    internal void Remove(int slot)
    {
        for (int layer = 0; layer < layers.Count; layer++)
        {
            if (_histories.Remove((slot, layer), out AttentionHistory? history))
            {
                history.Dispose();
            }
        }

        CountBytes();
    }

    /// <summary>Copies what is recorded about a sequence to one that continues it.</summary>
    internal void Continue(int slot, int parent)
    {
        for (int layer = 0; layer < layers.Count; layer++)
        {
            if (_histories.TryGetValue((parent, layer), out AttentionHistory? history))
            {
                _histories[(slot, layer)] = history.Copy();
            }
        }

        CountBytes();
    }

    /// <summary>Drops a sequence's latest tokens.</summary>
    internal void Shorten(int slot, int tokens, int dropped)
    {
        for (int layer = 0; layer < layers.Count; layer++)
        {
            if (_histories.TryGetValue((slot, layer), out AttentionHistory? history))
            {
                history.Shorten(tokens, dropped);
            }
        }

        CountBytes();
    }

    /// <summary>Selects the tokens that were kept: Int64 [num_layers, num_kv_heads, count].</summary>
    internal void Keep(int slot, Tensor tokens)
    {
        for (int layer = 0; layer < layers.Count; layer++)
        {
            if (_histories.TryGetValue((slot, layer), out AttentionHistory? history))
            {
                history.Keep(tokens[layer]);
            }
        }

        CountBytes();
    }

    /// <summary>The tokens of a sequence that stay, Int64 [num_layers, num_kv_heads, capacity] in ascending order; null if all do.</summary>
    internal Tensor? Choose(int slot)
    {
        int tokens = table[slot].Tokens;
        if (tokens < options.Capacity + table.Rules.GroupSize)
        {
            return null;
        }

        using DisposeScope scope = NewDisposeScope();
        return stack([.. layers.Select((_, layer) => Choose(slot, layer, tokens))], 0).MoveToOuterDisposeScope();
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

    private void CountBytes() => Volatile.Write(ref _bytes, _histories.Values.Sum(history => history.Bytes));

    private int MostQueries => options.Method == TokenEvictionMethod.RecentAttention ? options.RecentTokens : 2 * QueryBlock;

    // Int64 [num_kv_heads, capacity].
    private Tensor Choose(int slot, int layer, int tokens)
    {
        int earlier = tokens - options.RecentTokens, chosen = options.Capacity - options.RecentTokens;
        Tensor scores = Scores(slot, layer, tokens).narrow(1, 0, earlier);
        if (options.KernelSize > 1)
        {
            scores = nn.functional.max_pool1d(scores.unsqueeze(0), options.KernelSize, 1, options.KernelSize / 2)[0];
        }

        // The sinks always stay.
        scores = cat([full_like(scores.narrow(1, 0, table[slot].Sinks), Scalars.PositiveInfinity), scores.narrow(1, table[slot].Sinks, earlier - table[slot].Sinks)], 1);

        // Of equal scores, which pooling produces, the first wins, so that all devices choose alike.
        Tensor best = sort(scores, -1, true, true).indices.narrow(1, 0, chosen).sort(-1).Values;
        return cat([best, Scalars.Range(earlier, options.RecentTokens, best.device).expand(best.size(0), -1)], 1);
    }

    // Float32 [num_kv_heads, tokens].
    private Tensor Scores(int slot, int layer, int tokens)
    {
        LayerStorage storage = layers[layer];
        AttentionHistory history = Find(slot, layer);
        switch (options.Method)
        {
            case TokenEvictionMethod.RecentAttention:
                return history.Queries is null ? None() : Received(storage, slot, history.Queries, tokens);
            case TokenEvictionMethod.AccumulatedAttention:
                Accumulate(history, slot, layer, tokens);
                Tensor scores = None();
                if (history.Scores is not null)
                {
                    scores.narrow(1, 0, history.Scores.size(1)).copy_(history.Scores);
                }

                return scores;
            default:
                // The first tokens rank highest.
                return Scalars.Range(0, tokens, storage.Device).neg().to(ScalarType.Float32).expand(storage.NumKvHeads, -1);
        }

        Tensor None() => zeros([storage.NumKvHeads, tokens], dtype: ScalarType.Float32, device: storage.Device);
    }

    // Adds the attention of the kept queries, the last of which belongs to token end − 1, to the scores.
    private void Accumulate(AttentionHistory history, int slot, int layer, int end)
    {
        if (history.Queries is not null)
        {
            using DisposeScope scope = NewDisposeScope();
            history.AddScores(Received(layers[layer], slot, history.Queries, end));
            history.ClearQueries();
        }
    }

    private Tensor Received(LayerStorage storage, int slot, Tensor queries, int end)
    {
        Sequence sequence = table[slot];
        Tensor keys = storage.Stored(slot, sequence.Sinks, sequence.Compressed, sequence.Length, ofKeys: true).narrow(1, 0, end);
        return AttentionHistory.Received(queries, end - (int)queries.size(1), keys, _scale);
    }

    private AttentionHistory Find(int slot, int layer)
    {
        if (!_histories.TryGetValue((slot, layer), out AttentionHistory? history))
        {
            _histories[(slot, layer)] = history = new AttentionHistory();
        }

        return history;
    }

    // The contribution of a step: queries, or attention that tokens received.
    private sealed record Observation(int Slot, int Layer, int TokensBefore, Tensor? Queries, Tensor? Received) : IDisposable
    {
        public void Dispose()
        {
            Queries?.Dispose();
            Received?.Dispose();
        }
    }
}
