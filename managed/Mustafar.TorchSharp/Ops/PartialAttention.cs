using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Attention to some of the tokens, with what is needed to combine it with attention to the others: the weight of the scores.
/// </summary>
/// <remarks>
/// Uses libtorch's FlashAttention kernels (arXiv 2307.08691), which return the logarithm of the sum of a row's exponentials along with the
/// output. Not for NaN and infinity, whose effect depends on the kernels' order of operations.
/// </remarks>
internal sealed class PartialAttention
{
    private PartialAttention((Tensor Output, Tensor LogSumExp) part) => (Output, LogSumExp) = part;

    /// <summary>Attention to these tokens alone [batch, num_heads, queries, head_dim], in the type of the queries, or Float32 if merged.</summary>
    internal Tensor Output { get; }

    /// <summary>Natural logarithm of the sum of the exponentials of a row's scores, Float32 [batch, num_heads, queries].</summary>
    internal Tensor LogSumExp { get; }

    /// <summary>Whether a kernel supports such queries here.</summary>
    internal static bool Serves(Tensor query) =>
        query.device_type == DeviceType.CPU ? TorchShim.HasCpuFlash : FusedAttention.HasFlash(query);

    /// <summary>Attention of queries that see all tokens.</summary>
    /// <param name="query">Queries [batch, num_heads, queries, head_dim].</param>
    /// <param name="keys">Keys [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="values">Values [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="scale">Factor of the scores.</param>
    internal static PartialAttention Full(Tensor query, Tensor keys, Tensor values, double scale) => query.device_type == DeviceType.CPU
        ? OnCpu(query, query.reshape(query.size(0), keys.size(1), -1, query.size(3)), keys, values, causal: false, scale)
        : new(FusedAttention.Flash(query, keys, values, causal: false, scale));

    /// <summary>Attention of queries to all tokens up to their own; the last query belongs to the last token.</summary>
    /// <param name="query">Queries [batch, num_heads, queries, head_dim].</param>
    /// <param name="keys">Keys [batch, num_kv_heads, tokens ≥ queries, head_dim].</param>
    /// <param name="values">Values [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="scale">Factor of the scores.</param>
    internal static PartialAttention Causal(Tensor query, Tensor keys, Tensor values, double scale)
    {
        if (query.device_type != DeviceType.CPU)
        {
            return new(FusedAttention.Flash(query, keys, values, causal: true, scale));
        }

        // The CPU's kernel assumes that the first query belongs to the first token.
        (long queries, long past, long headDim) = (query.size(2), keys.size(2) - query.size(2), query.size(3));
        long group = query.size(1) / keys.size(1);
        PartialAttention own = OnCpu(
            query, query.reshape(-1, group, queries, headDim), Repeated(keys), Repeated(values), causal: true, scale);
        return past == 0 ? own : Full(query, keys.narrow(2, 0, past), values.narrow(2, 0, past), scale).Merge(own);

        Tensor Repeated(Tensor tokens) => tokens.narrow(2, past, queries).to(ScalarType.Float32)
            .reshape(-1, 1, queries, headDim).expand(-1, group, -1, -1);
    }

    /// <summary>Attention to the tokens of both, which must be disjoint.</summary>
    internal PartialAttention Merge(PartialAttention other)
    {
        Tensor share = (other.LogSumExp - LogSumExp).sigmoid_().unsqueeze(-1);
        return new PartialAttention((
            lerp(Output.to(ScalarType.Float32), other.Output.to(ScalarType.Float32), share), logaddexp(LogSumExp, other.LogSumExp)));
    }

    /// <summary>Moves it to the next outer dispose scope.</summary>
    internal PartialAttention MoveToOuter()
    {
        Output.MoveToOuterDisposeScope();
        LogSumExp.MoveToOuterDisposeScope();
        return this;
    }

    // The kernel needs as many key heads as query heads, so the queries are reshaped: the query heads of a KV head become more queries of
    // one head, or share a key. In single precision, since this kernel takes twice as long in Float16, and no less in BFloat16.
    private static PartialAttention OnCpu(Tensor query, Tensor rows, Tensor keys, Tensor values, bool causal, double scale)
    {
        (Tensor output, Tensor logSumExp) = TorchShim.CpuFlashAttention(
            TensorAccess.WithContiguousRows(rows.to(ScalarType.Float32)),
            keys.to(ScalarType.Float32),
            values.to(ScalarType.Float32),
            causal,
            scale);
        long[] shape = query.Sizes();
        return new PartialAttention((output.reshape(shape), logSumExp.reshape(shape[..3])));
    }
}
