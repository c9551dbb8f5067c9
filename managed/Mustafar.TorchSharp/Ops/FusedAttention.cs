using System.Collections.Concurrent;
using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Which of torch's fused attention kernels support a call on CUDA, each by itself.</summary>
/// <remarks>
/// torch's scaled_dot_product_attention chooses among them, but TorchSharp's version cannot express that several query heads share a
/// KV head.
/// </remarks>
internal static class FusedAttention
{
    private const int MostFlashHeadDim = 256;
    private const int MostCuDnnHeadDim = 128;

    // cuDNN is the faster of the two on Hopper with many queries, but it prepares a plan for each new shape, which took 1.6 ms on an H200.
    // By estimate that is what the 32 layers of an 8B model gain from it over a prompt of this many tokens.
    private const int FewestCuDnnQueries = 2048;

    private static readonly ConcurrentDictionary<(int Device, bool CuDnn), bool> Works = new();

    /// <summary>Whether FlashAttention supports such queries.</summary>
    internal static bool HasFlash(Tensor query) => TorchShim.HasFlash && Fits(query, MostFlashHeadDim) && IsWorking(query, cuDnn: false);

    /// <summary>Whether cuDNN supports such queries.</summary>
    internal static bool HasCuDnn(Tensor query) => TorchShim.HasCuDnn && Fits(query, MostCuDnnHeadDim) && IsWorking(query, cuDnn: true);

    /// <summary>Attention without a mask, by the faster kernel; null if neither supports the call.</summary>
    /// <param name="query">Queries [batch, num_heads, queries, head_dim].</param>
    /// <param name="keys">Keys [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="values">Values [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="causal">Whether query i only sees tokens up to i; there are as many tokens as queries then.</param>
    /// <param name="scale">Factor of the scores.</param>
    internal static Tensor? Forward(Tensor query, Tensor keys, Tensor values, bool causal, double scale) =>
        query.size(2) >= FewestCuDnnQueries && HasCuDnn(query)
            ? TorchShim.CuDnnAttention(TensorAccess.WithAlignedRows(query), TensorAccess.WithAlignedRows(keys), TensorAccess.WithAlignedRows(values), bias: null, causal, scale)
            : HasFlash(query) ? Flash(query, keys, values, causal, scale).Output : null;

    /// <summary>Attention with a mask by cuDNN, the only one of them that supports masks and GQA; null if it does not support the
    /// call.</summary>
    /// <param name="query">Queries [batch, num_heads, queries, head_dim].</param>
    /// <param name="keys">Keys [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="values">Values [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="mask">Bool [queries, tokens] or [batch or 1, 1, queries, tokens], true for tokens that a query sees.</param>
    /// <param name="scale">Factor of the scores.</param>
    internal static Tensor? Masked(Tensor query, Tensor keys, Tensor values, Tensor mask, double scale)
    {
        // cuDNN has no kernel for a single token.
        if (keys.size(2) == 1 || !HasCuDnn(query))
        {
            return null;
        }

        Tensor bias = zeros(mask.Sizes(), dtype: query.dtype, device: query.device)
            .masked_fill_(mask.logical_not(), Scalars.NegativeInfinity)
            .expand(query.size(0), query.size(1), query.size(2), keys.size(2));
        return TorchShim.CuDnnAttention(TensorAccess.WithAlignedRows(query), TensorAccess.WithAlignedRows(keys), TensorAccess.WithAlignedRows(values), bias, causal: false, scale);
    }

    /// <summary>FlashAttention, and each row's log-sum-exp; for queries that <see cref="HasFlash"/> accepts.</summary>
    /// <inheritdoc cref="TorchShim.FlashAttention"/>
    internal static (Tensor Output, Tensor LogSumExp) Flash(Tensor query, Tensor keys, Tensor values, bool causal, double scale) =>
        TorchShim.FlashAttention(TensorAccess.WithAlignedRows(query), TensorAccess.WithAlignedRows(keys), TensorAccess.WithAlignedRows(values), causal, scale);

    private static bool Fits(Tensor query, int mostHeadDim) =>
        query.device_type == DeviceType.CUDA
        && query.dtype is ScalarType.Float16 or ScalarType.BFloat16
        && query.size(3) % 8 == 0
        && query.size(3) <= mostHeadDim;

    // That an operator exists says nothing about the device, and a libtorch may have been built without the kernels behind it, so each
    // kernel is tried once.
    private static bool IsWorking(Tensor query, bool cuDnn) => Works.GetOrAdd((query.device_index, cuDnn), kernel =>
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor probe = zeros([1, 1, 64, 64], dtype: ScalarType.Float16, device: query.device);
        try
        {
            _ = kernel.CuDnn
                ? TorchShim.CuDnnAttention(probe, probe, probe, bias: null, causal: true, scale: 1)
                : TorchShim.FlashAttention(probe, probe, probe, causal: true, scale: 1).Output;
            return true;
        }
        catch (MustafarException)
        {
            return false;
        }
    });
}
