using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>The properties that the layers of one cache have in common.</summary>
internal readonly record struct KeyShape(KeyValueShape Heads, ScalarType DType, DeviceType DeviceType, int DeviceIndex)
{
    /// <summary>Those of a layer's keys [batch, num_kv_heads, n, head_dim].</summary>
    internal static KeyShape Of(Tensor keys) => new(
        new KeyValueShape { NumKvHeads = checked((int)keys.size(1)), HeadDim = checked((int)keys.size(3)) },
        keys.dtype, keys.device_type, keys.device_index);
}
