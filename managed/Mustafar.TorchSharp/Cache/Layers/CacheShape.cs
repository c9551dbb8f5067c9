using System.Globalization;
using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>The properties that the layers of a cache have in common.</summary>
/// <param name="Heads">Sizes of a token's key, and of its value.</param>
/// <param name="DType">Type of keys, values and queries.</param>
/// <param name="Device">Where keys and values live.</param>
internal sealed record CacheShape(KeyValueShape Heads, ScalarType DType, torch.Device Device)
{
    /// <summary>The shape of a cache that a caller asks for.</summary>
    /// <exception cref="ArgumentNullException">The shape or the device is null.</exception>
    /// <exception cref="ArgumentException">The type is not a supported floating-point type.</exception>
    internal static CacheShape Checked(KeyValueShape shape, ScalarType dtype, torch.Device device)
    {
        ArgumentNullException.ThrowIfNull(shape);
        ArgumentNullException.ThrowIfNull(device);
        return dtype is ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16
            ? new CacheShape(shape, dtype, device)
            : throw new ArgumentException($"A cache holds Float32, Float16 or BFloat16, not {dtype}.", nameof(dtype));
    }

    /// <summary>Number of key/value heads.</summary>
    internal int NumKvHeads => Heads.NumKvHeads;

    /// <summary>Elements of one head's key, and of its value.</summary>
    internal int HeadDim => Heads.HeadDim;

    internal int ElementBytes => TensorAccess.ElementBytes(DType);

    /// <summary>Bytes of a token's key and value in one layer, as they come.</summary>
    internal long TokenBytes => 2L * NumKvHeads * HeadDim * ElementBytes;

    /// <summary>The tensors [batch, num_kv_heads, tokens, head_dim] of so many tokens, zero.</summary>
    /// <remarks>Not in any scope. A tensor made in inference mode could not be written to outside of it.</remarks>
    internal (Tensor Keys, Tensor Values) Allocate(long batch, long tokens, ScalarType? dtype = null)
    {
        using IDisposable mode = inference_mode(false);
        Tensor keys = zeros([batch, NumKvHeads, tokens, HeadDim], dtype: dtype ?? DType, device: Device).DetachFromDisposeScope();
        try
        {
            return (keys, zeros_like(keys).DetachFromDisposeScope());
        }
        catch
        {
            keys.Dispose();
            throw;
        }
    }

    /// <summary>Checks keys and values of new tokens [batch, num_kv_heads, n, head_dim].</summary>
    /// <exception cref="ArgumentException">An argument doesn't fit.</exception>
    internal void CheckNewTokens(Tensor keys, Tensor values, int batch)
    {
        CheckTensor(keys, nameof(keys));
        CheckTensor(values, nameof(values));
        CheckRows(keys, nameof(keys), batch, NumKvHeads);
        CheckRows(values, nameof(values), batch, NumKvHeads);
        if (values.size(2) != keys.size(2))
        {
            throw new ArgumentException(
                $"Expected values of {keys.size(2)} tokens, as for the keys, but got {values.size(2)}.", nameof(values));
        }
    }

    /// <summary>Checks queries [batch, num_heads, n, head_dim] and their scale.</summary>
    /// <exception cref="ArgumentException">An argument doesn't fit.</exception>
    internal void CheckQuery(Tensor query, int batch, double? scale)
    {
        CheckTensor(query, nameof(query));
        CheckRows(query, nameof(query), batch, heads: null);
        if (query.size(1) == 0 || query.size(1) % NumKvHeads != 0)
        {
            throw new ArgumentException(
                $"Expected a multiple of {NumKvHeads} query heads, the number of KV heads, but got {query.size(1)}.", nameof(query));
        }

        if (scale is double factor && !double.IsFinite(factor))
        {
            throw new ArgumentOutOfRangeException(nameof(scale), factor, "Expected a finite scale of the scores.");
        }
    }

    /// <summary>Checks that each new token has a query.</summary>
    /// <exception cref="ArgumentException">It has not.</exception>
    internal static void CheckSameTokens(Tensor query, Tensor keys)
    {
        if (query.size(2) != keys.size(2))
        {
            throw new ArgumentException(
                $"Expected one query per new token, but got {query.size(2)} queries with {keys.size(2)} keys.", nameof(query));
        }
    }

    /// <summary>Checks how many of n tokens belong to each sequence; all if empty.</summary>
    /// <exception cref="ArgumentException">There is not one count for each sequence, or one is out of range.</exception>
    internal static void CheckCounts(ReadOnlySpan<int> counts, int batch, long tokens)
    {
        if (counts.IsEmpty)
        {
            return;
        }

        if (counts.Length != batch)
        {
            throw new ArgumentException($"Expected one count for each of {batch} sequences, but got {counts.Length}.", nameof(counts));
        }

        for (int i = 0; i < counts.Length; i++)
        {
            if (counts[i] < 0 || counts[i] > tokens)
            {
                throw new ArgumentOutOfRangeException(
                    nameof(counts), counts[i], $"Expected 0 to {tokens} of the new tokens for sequence {i}.");
            }
        }
    }

    private void CheckTensor(Tensor tensor, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.dtype != DType)
        {
            throw new ArgumentException($"Expected {DType}, the type of the cache, but got {tensor.dtype}.", name);
        }

        if (tensor.device_type != Device.type || (Device.index >= 0 && tensor.device_index != Device.index))
        {
            throw new ArgumentException($"Expected a tensor on {Device}, where the cache is, but got one on {tensor.device}.", name);
        }

        if (tensor.is_sparse)
        {
            throw new ArgumentException("Expected a strided tensor, but got a sparse one.", name);
        }
    }

    private void CheckRows(Tensor tensor, string name, int batch, int? heads)
    {
        if (tensor.dim() != 4 || tensor.size(0) != batch || (heads is int count && tensor.size(1) != count) || tensor.size(2) == 0
            || tensor.size(3) != HeadDim)
        {
            string headsText = heads?.ToString(CultureInfo.InvariantCulture) ?? "heads";
            throw new ArgumentException(
                $"Expected shape [{batch}, {headsText}, tokens > 0, {HeadDim}], but got [{string.Join(", ", tensor.shape)}].", name);
        }
    }
}
