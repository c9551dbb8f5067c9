using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What the layers of a cache have in common.</summary>
/// <param name="NumKvHeads">Number of key/value heads.</param>
/// <param name="HeadDim">Elements of one head's key, and of its value.</param>
/// <param name="DType">Type of keys, values and queries.</param>
/// <param name="Device">Where keys and values live.</param>
internal sealed record CacheShape(int NumKvHeads, int HeadDim, ScalarType DType, torch.Device Device)
{
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
}
