using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>Attention in double precision, by the definition.</summary>
internal static class ReferenceAttention
{
    /// <summary>One sequence: query [num_heads, n, head_dim] over keys and values [num_kv_heads, tokens, head_dim]; query i stands at
    /// token tokens − n + i and sees the tokens up to its own, of these the last window if there is one and the first sinks. Float64; zero where nothing is seen.</summary>
    internal static Tensor Attend(Tensor query, Tensor keys, Tensor values, double scale, int? window = null, int sinks = 0)
    {
        long group = query.shape[0] / keys.shape[0];
        long count = query.shape[1];
        long tokens = keys.shape[1];
        Tensor result = zeros(query.shape, dtype: ScalarType.Float64);
        for (long head = 0; head < query.shape[0]; head++)
        {
            Tensor k = keys[head / group].to(ScalarType.Float64).cpu();
            Tensor v = values[head / group].to(ScalarType.Float64).cpu();
            for (long i = 0; i < count; i++)
            {
                long visible = Math.Max(0, tokens - count + i + 1);
                if (visible == 0)
                {
                    continue;
                }

                long first = Math.Max(0, visible - (window ?? visible));
                Tensor q = query[head, i].to(ScalarType.Float64).cpu();
                // Written out, without a kernel that might leave out what has no weight.
                Tensor scores = (Seen(k) * q).sum(1).mul(scale);
                Tensor weights = (scores - scores.max()).exp();
                result[head, i] = (Seen(v) * (weights / weights.sum()).unsqueeze(1)).sum([0]);

                Tensor Seen(Tensor rows) => Math.Min(sinks, first) is > 0 and long apart
                    ? cat([rows.narrow(0, 0, apart), rows.narrow(0, first, visible - first)])
                    : rows.narrow(0, first, visible - first);
            }
        }

        return result;
    }

    /// <summary>A batch whose sequences have their own numbers of tokens.</summary>
    internal static Tensor Attend(Tensor query, Tensor keys, Tensor values, double scale, IReadOnlyList<int> lengths) =>
        stack(lengths.Select((length, b) =>
            Attend(query[b], keys[b].narrow(1, 0, length), values[b].narrow(1, 0, length), scale)).ToArray());
}
