using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Attention over dense keys and values, by torch's kernels. With NaN and infinity on the CPU, where the result of those kernels depends on
/// their algorithm, the formula itself is computed.
/// </summary>
internal static class DenseAttention
{
    private const int QueryBlock = 512;

    /// <summary>
    /// scaled_dot_product_attention of [batch, num_heads, queries, head_dim] over [batch, num_kv_heads, tokens, head_dim], without
    /// repeating keys and values for the heads of a group.
    /// </summary>
    /// <param name="query">Queries.</param>
    /// <param name="keys">Keys.</param>
    /// <param name="values">Values.</param>
    /// <param name="scale">Factor of the scores; 1/√head_dim if null.</param>
    /// <param name="mask">Bool, broadcast to [batch, 1, queries, tokens], true for tokens that a query sees; null for all.</param>
    /// <param name="causal">Whether query i only sees tokens up to i; mask is null then.</param>
    /// <param name="finite">Whether no operand holds NaN or infinity, or torch's kernels must be used anyway.</param>
    /// <returns>A tensor like the query, in the current dispose scope; undefined for a query that sees nothing.</returns>
    internal static Tensor Forward(Tensor query, Tensor keys, Tensor values, double? scale, Tensor? mask, bool causal, bool finite)
    {
        if (!finite)
        {
            return ByFormula(query, keys, values, scale, mask, causal);
        }

        long[] shape = query.Sizes();
        (long batch, long numHeads, long queries, long headDim) = (shape[0], shape[1], shape[2], shape[3]);
        long numKvHeads = keys.size(1);
        long group = numHeads / numKvHeads;
        if (queries > 1 && Fused(query, keys, values, scale ?? 1 / Math.Sqrt(headDim), mask, causal) is Tensor fused)
        {
            return fused;
        }

        // TorchSharp's function scales by 1/√head_dim; any other factor is multiplied into the queries.
        Tensor scaled = scale is double factor ? query.Times(factor * Math.Sqrt(headDim)) : query;
        if (group == 1)
        {
            return Sdpa(scaled, keys, values, mask, causal);
        }

        if (queries == 1)
        {
            return Sdpa(scaled.reshape(batch, numKvHeads, group, headDim), keys, values, mask, causal: false).reshape(shape);
        }

        // One call per query head of a KV head: each reads keys and values as they are stored.
        Tensor grouped = scaled.reshape(batch, numKvHeads, group, queries, headDim);
        Tensor[] outputs = new Tensor[group];
        for (int member = 0; member < group; member++)
        {
            outputs[member] = Sdpa(grouped.select(2, member), keys, values, mask, causal);
        }

        return stack(outputs, 2).reshape(shape);
    }

    /// <summary>Attention of a sequence's last n tokens: each sees the tokens up to itself, but of these only the last
    /// <paramref name="window"/> and the first <paramref name="sinks"/>.</summary>
    /// <param name="query">Queries [batch, num_heads, n, head_dim].</param>
    /// <param name="keys">Keys [batch, num_kv_heads, tokens ≥ n, head_dim].</param>
    /// <param name="values">Values [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="scale">Factor of the scores; 1/√head_dim if null.</param>
    /// <param name="window">Number of tokens that a query sees, including itself; null for all.</param>
    /// <param name="sinks">First tokens that every later query sees.</param>
    /// <returns>A tensor like the query, in the current dispose scope.</returns>
    internal static Tensor Causal(Tensor query, Tensor keys, Tensor values, double? scale, int? window, int sinks = 0)
    {
        (long queries, long tokens) = (query.size(2), keys.size(2));
        (long past, long seen) = (tokens - queries, window ?? tokens);
        bool finite = IsFinite(query, keys, values);
        if (past == 0 && seen >= tokens)
        {
            return Forward(query, keys, values, scale, mask: null, causal: tokens > 1, finite);
        }

        // In blocks of queries: only the keys that a block sees are read, and no mask is n by n.
        Tensor output = empty_like(query);
        for (long first = 0; first < queries; first += QueryBlock)
        {
            using DisposeScope scope = NewDisposeScope();
            long count = Math.Min(QueryBlock, queries - first);
            long position = past + first;
            long begin = Math.Max(0, position + 1 - seen);
            long end = position + count;
            long apart = Math.Min(sinks, begin);
            Tensor token = Scalars.Range(begin, end - begin, query.device);
            token = apart == 0 ? token : cat([Scalars.Range(0, apart, query.device), token]);
            Tensor distance = Scalars.Range(position, count, query.device).unsqueeze(1) - token;
            Scalar limit = seen, firstOther = sinks;
            Tensor mask = distance.ge(Scalars.Zero).logical_and(distance.lt(limit).logical_or(token.lt(firstOther)));
            GC.KeepAlive(limit);
            GC.KeepAlive(firstOther);
            output.narrow(2, first, count).copy_(
                Forward(query.narrow(2, first, count), Seen(keys), Seen(values), scale, mask, causal: false, finite));

            Tensor Seen(Tensor tokens) => apart == 0
                ? tokens.narrow(2, begin, end - begin)
                : cat([tokens.narrow(2, 0, apart), tokens.narrow(2, begin, end - begin)], 2);
        }

        return output;
    }

    /// <summary>Whether torch's kernels may compute with these tensors: on the CPU if they are finite, elsewhere always, since checking
    /// them would mean waiting for the device.</summary>
    internal static bool IsFinite(params ReadOnlySpan<Tensor> tensors)
    {
        foreach (Tensor tensor in tensors)
        {
            if (tensor.device_type == DeviceType.CPU && !FiniteCheck.IsFinite(tensor))
            {
                return false;
            }
        }

        return true;
    }

    // softmax(scale · q · kᵀ) · v in single precision, in which tokens that a query does not see have no effect. A block of queries at a
    // time.
    private static Tensor ByFormula(Tensor query, Tensor keys, Tensor values, double? scale, Tensor? mask, bool causal)
    {
        Tensor output = empty_like(query);
        (long batch, long queries, long headDim, long numKvHeads) = (query.size(0), query.size(2), query.size(3), keys.size(1));
        long group = query.size(1) / numKvHeads;
        for (long b = 0; b < batch; b++)
        {
            for (long first = 0; first < queries; first += QueryBlock)
            {
                using DisposeScope scope = NewDisposeScope();
                long count = Math.Min(QueryBlock, queries - first);
                Tensor rows = query[b].narrow(1, first, count).to(ScalarType.Float32).Times(scale ?? 1 / Math.Sqrt(headDim));
                OnlineSoftmax softmax = new(rows.reshape(numKvHeads, -1, headDim));
                softmax.Add(keys[b].to(ScalarType.Float32), values[b].to(ScalarType.Float32), Hidden(b, first, count));
                output[b].narrow(1, first, count).copy_(softmax.Result().reshape(-1, count, headDim));
            }
        }

        return output;

        Tensor? Hidden(long b, long first, long count)
        {
            Tensor? hidden = causal
                ? Scalars.Range(first, count, query.device).unsqueeze(1) < Scalars.Range(0, keys.size(2), query.device)
                : mask?.expand(batch, 1, queries, keys.size(2))[b, 0].narrow(0, first, count).logical_not();
            return hidden?.repeat(group, 1);
        }
    }

    // Many queries of a KV head in one call, if there is a kernel for it.
    private static Tensor? Fused(Tensor query, Tensor keys, Tensor values, double scale, Tensor? mask, bool causal) =>
        mask is null ? FusedAttention.Forward(query, keys, values, causal, scale)
        : query.size(1) == keys.size(1) ? null
        : FusedAttention.Masked(query, keys, values, mask, scale);

    private static Tensor Sdpa(Tensor query, Tensor keys, Tensor values, Tensor? mask, bool causal)
    {
        if (query.device_type == DeviceType.CUDA)
        {
            (query, keys, values) = (
                TensorAccess.WithAlignedRows(query), TensorAccess.WithAlignedRows(keys), TensorAccess.WithAlignedRows(values));
        }

        return nn.functional.scaled_dot_product_attention(query, keys, values, mask!, 0, causal);
    }
}
