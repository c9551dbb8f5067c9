using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>Which channels of one sequence's keys or values a selection keeps, by plain loops over sorted numbers.</summary>
internal sealed class ReferenceSelection(ChannelSelection selection, int keep, SparsityPattern pattern)
{
    private double[,]? _queries; // [num_kv_heads, head_dim]
    private double[,]? _tokens;
    private Tensor? _latest; // queries [num_heads, up to 32, head_dim]
    private double[,]? _received; // by tokens, [num_kv_heads, tokens]

    internal ReferenceSelection Copy() => (ReferenceSelection)MemberwiseClone();

    /// <summary>Takes in new tokens of a sequence of which nothing is compressed.</summary>
    /// <param name="query">[num_heads, n, head_dim], or null.</param>
    /// <param name="tokens">[num_kv_heads, n, head_dim].</param>
    /// <param name="isFirst">Whether the sequence was empty.</param>
    internal void Add(Tensor? query, Tensor tokens, bool isFirst)
    {
        (int heads, int count, int headDim) = ((int)tokens.shape[0], (int)tokens.shape[1], (int)tokens.shape[2]);
        if (count == 0)
        {
            return;
        }

        _tokens = isFirst ? null : _tokens;
        double[,] sums = _tokens is null ? new double[heads, headDim] : (double[,])_tokens.Clone();
        float[] rows = Values.Of(tokens);
        for (int i = 0; i < rows.Length; i++)
        {
            sums[i / (count * headDim), i % headDim] += (double)rows[i] * rows[i];
        }

        _tokens = sums;
        if (query is not null)
        {
            int last = Math.Min(count, 32), group = (int)query.shape[0] / heads;
            double[,] ofQueries = isFirst || count >= 32 || _queries is null ? new double[heads, headDim] : (double[,])_queries.Clone();
            float[] numbers = Values.Of(query.narrow(1, count - last, last));
            for (int i = 0; i < numbers.Length; i++)
            {
                double q = Math.Abs((double)numbers[i]);
                ofQueries[i / (last * headDim) / group, i % headDim] += selection == KeySelection.OutputAware ? q : q * q;
            }

            _queries = ofQueries;
        }
    }

    /// <summary>Whether values are weighed by the attention that their tokens receive.</summary>
    internal bool WeighsTokens => selection is ValueSelection { Name: "output-aware" };

    /// <summary>Finds the attention that tokens receive from the latest 32 queries, those of the last tokens.</summary>
    /// <param name="queries">New ones [num_heads, n, head_dim].</param>
    /// <param name="keys">Of all tokens, with those of the new queries, [num_kv_heads, tokens, head_dim].</param>
    /// <param name="scale">Factor of the scores.</param>
    /// <param name="window">Latest tokens that a query sees; null for all.</param>
    /// <param name="sinks">First tokens that each query sees.</param>
    internal void Weigh(Tensor queries, Tensor keys, double scale, int? window, int sinks)
    {
        Tensor all = Latest(queries);
        (int heads, int count, int kvHeads, int tokens) = ((int)all.shape[0], (int)all.shape[1], (int)keys.shape[0], (int)keys.shape[1]);
        double[,] received = new double[kvHeads, tokens];
        for (int h = 0; h < heads; h++)
        {
            int kvHead = h / (heads / kvHeads);
            double[] scores = matmul(all[h].to(ScalarType.Float64), keys[kvHead].to(ScalarType.Float64).t()).contiguous().data<double>().ToArray();
            for (int i = 0; i < count; i++)
            {
                int own = tokens - count + i;
                double[] weights = [.. Enumerable.Range(0, tokens).Select(t =>
                    t > own || (window is int latest && t >= sinks && t <= own - latest) ? 0 : Math.Exp(scale * scores[(i * tokens) + t]))];
                double sum = weights.Sum();
                for (int t = 0; t < tokens; t++)
                {
                    received[kvHead, t] += weights[t] / sum;
                }
            }
        }

        _received = count == 0 ? null : received;
    }

    /// <summary>Keeps the latest queries, after a step.</summary>
    internal void Keep(Tensor queries) => _latest = Latest(queries);

    /// <summary>Forgets the queries of the last tokens.</summary>
    internal void Shorten(int dropped) => _latest = _latest?.narrow(1, 0, Math.Max(0, _latest.shape[1] - dropped));

    /// <summary>What is stored of such tokens in place of all their channels; null if channels are chosen.</summary>
    internal Tensor? Rewritten(Tensor tokens, int first) =>
        selection.Rewrites ? selection.Function!(new SelectionInput(tokens, 0, first, keep)) : null;

    /// <summary>The mask of tokens [num_kv_heads, n, head_dim] that are compressed together, the first of which stands at `first`, after so many
    /// sinks.</summary>
    internal Tensor Mask(Tensor tokens, int first, int sinks)
    {
        if (keep == tokens.shape[2])
        {
            return ones_like(tokens, dtype: ScalarType.Bool);
        }

        if (selection.Function is not null)
        {
            Tensor chosen = selection.Function(new SelectionInput(tokens, 0, first, keep));
            return chosen.dtype == ScalarType.Bool ? chosen : ReferencePruning.Mask(chosen, keep, pattern);
        }

        if (WeighsTokens)
        {
            return PerChannel(_received is null ? tokens : tokens.to(ScalarType.Float64) * tensor(_received).narrow(1, sinks + first, tokens.shape[1]).unsqueeze(-1));
        }

        return selection.Name switch
        {
            "magnitude" => ReferencePruning.Mask(tokens, keep, pattern),
            "output-aware" => ReferencePruning.Mask(tokens.to(ScalarType.Float32) * Row(_queries!), keep, pattern),
            "structured" => ReferencePruning.Mask(Row(Channels()), keep).expand(tokens.shape),
            "per-channel" => PerChannel(tokens),
            _ => throw new ArgumentException(selection.Name),
        };
    }

    private Tensor Latest(Tensor queries)
    {
        Tensor all = _latest is null ? queries : cat([_latest, queries], 1);
        long count = Math.Min(32, all.shape[1]);
        return all.narrow(1, all.shape[1] - count, count);
    }

    private static Tensor Row(double[,] channels) => tensor(channels).to(ScalarType.Float32).unsqueeze(1);

    private double[,] Channels()
    {
        double[,] scores = (double[,])_tokens!.Clone();
        for (int h = 0; h < scores.GetLength(0); h++)
        {
            for (int c = 0; c < scores.GetLength(1); c++)
            {
                scores[h, c] = Math.Sqrt(scores[h, c]) * (_queries is null ? 1 : Math.Sqrt(_queries[h, c]));
            }
        }

        return scores;
    }

    private Tensor PerChannel(Tensor tokens)
    {
        Tensor columns = tokens.to(ScalarType.Float32).reshape(tokens.shape[0], -1, 32, tokens.shape[2]).transpose(2, 3);
        return ReferencePruning.Mask(columns, 32 * keep / (int)tokens.shape[2]).transpose(2, 3).reshape(tokens.shape);
    }
}
