using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What eviction knows about one sequence in one layer: its latest queries, and the attention that its tokens received from
/// earlier ones.</summary>
internal sealed class AttentionHistory : IDisposable
{
    // Number of queries whose weights are in memory at a time.
    private const int QueryChunk = 256;

    /// <summary>Queries of the latest tokens, [num_heads, count, head_dim]; null if there are none.</summary>
    internal Tensor? Queries { get; private set; }

    /// <summary>Sums of attention weights, Float32 [num_kv_heads, tokens]; null if there are none.</summary>
    internal Tensor? Scores { get; private set; }

    internal long Bytes => Size(Queries) + Size(Scores);

    /// <summary>Adds the queries of the next tokens.</summary>
    /// <param name="queries">[num_heads, count, head_dim].</param>
    /// <param name="most">How many of the latest queries are kept.</param>
    internal void Add(Tensor queries, int most)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor all = Queries is null ? queries : cat([Queries, queries], 1);
        long kept = Math.Min(most, all.size(1));
        SetQueries(all.narrow(1, all.size(1) - kept, kept).clone());
    }

    /// <summary>Drops the queries.</summary>
    internal void ClearQueries() => SetQueries(null);

    /// <summary>Adds attention that tokens received, Float32 [num_kv_heads, tokens]; there may be more tokens than before.</summary>
    internal void AddScores(Tensor received)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor sum = received.clone();
        if (Scores is not null)
        {
            sum.narrow(1, 0, Scores.size(1)).add_(Scores, Scalars.One);
        }

        SetScores(sum);
    }

    /// <summary>Selects the tokens that were kept: Int64 [num_kv_heads, count].</summary>
    internal void Keep(Tensor tokens)
    {
        using DisposeScope scope = NewDisposeScope();
        SetScores(Scores?.gather(1, tokens));
    }

    /// <summary>Drops the latest tokens.</summary>
    internal void Shorten(int tokens, int dropped)
    {
        using DisposeScope scope = NewDisposeScope();
        SetQueries(Queries is not null && Queries.size(1) > dropped ? Queries.narrow(1, 0, Queries.size(1) - dropped).clone() : null);
        SetScores(tokens == 0 ? null : Scores?.narrow(1, 0, Math.Min(tokens, Scores.size(1))).clone());
    }

    internal AttentionHistory Copy() => new()
    {
        Queries = Queries?.clone().DetachFromDisposeScope(), Scores = Scores?.clone().DetachFromDisposeScope(),
    };

    public void Dispose()
    {
        SetQueries(null);
        SetScores(null);
    }

    /// <summary>The attention that tokens receive from some queries: the sum over queries, the mean over the query heads of a KV head.</summary>
    /// <param name="queries">[num_heads, count, head_dim].</param>
    /// <param name="first">Index of the first query's token; the others follow. A query sees its own token and earlier ones.</param>
    /// <param name="keys">[num_kv_heads, tokens, head_dim].</param>
    /// <param name="scale">Factor of the scores.</param>
    /// <param name="window">Number of latest tokens that a query sees, including its own; null for all.</param>
    /// <param name="sinks">Number of first tokens that every query sees.</param>
    /// <returns>Float32 [num_kv_heads, tokens].</returns>
    internal static Tensor Received(Tensor queries, int first, Tensor keys, double scale, int? window = null, int sinks = 0)
    {
        using DisposeScope scope = NewDisposeScope();
        (long kvHeads, long tokens, long headDim) = (keys.size(0), keys.size(1), keys.size(2));
        long group = queries.size(0) / kvHeads;
        Tensor transposed = keys.to(ScalarType.Float32).transpose(1, 2);
        Tensor sum = zeros([kvHeads, tokens], dtype: ScalarType.Float32, device: keys.device);
        Tensor token = Scalars.Range(0, tokens, keys.device);
        for (long i = 0; i < queries.size(1); i += QueryChunk)
        {
            using DisposeScope chunk = NewDisposeScope();
            long count = Math.Min(QueryChunk, queries.size(1) - i);
            Tensor rows = queries.narrow(1, i, count).to(ScalarType.Float32).Times(scale).reshape(kvHeads, group * count, headDim);
            Tensor hidden = Scalars.Range(first + i, count, keys.device).unsqueeze(1).lt(token);
            if (window is int latest)
            {
                Tensor tooOld = Scalars.Range(first + i - latest, count, keys.device).unsqueeze(1).ge(token);
                tooOld.narrow(1, 0, sinks).zero_();
                hidden = hidden.logical_or(tooOld);
            }

            Tensor weights = matmul(rows, transposed).masked_fill_(hidden.repeat(group, 1), Scalars.NegativeInfinity).softmax(-1);
            sum.add_(weights.sum(1), Scalars.One);
        }

        return sum.Times(1.0 / group).MoveToOuterDisposeScope();
    }

    private void SetQueries(Tensor? queries)
    {
        Queries?.Dispose();
        Queries = queries?.DetachFromDisposeScope();
    }

    private void SetScores(Tensor? scores)
    {
        Scores?.Dispose();
        Scores = scores?.DetachFromDisposeScope();
    }

    private static long Size(Tensor? tensor) => tensor is null ? 0 : tensor.numel() * tensor.ElementSize;
}
