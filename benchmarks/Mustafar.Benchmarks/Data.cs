using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>Random tensors, normally distributed, the same in each run.</summary>
internal static class Data
{
    internal static Tensor Random(Device device, ScalarType dtype, params long[] shape) => randn(shape, device: device).to(dtype);

    /// <summary>Options that keep so many channels.</summary>
    internal static MustafarOptions Options(Kept keep, int headDim) => new()
    {
        KeySparsity = (headDim - keep.Channels) / (double)headDim,
        ValueSparsity = (headDim - keep.Channels) / (double)headDim,
        KeepMultiple = 1,
        Balanced = keep.Balanced,
    };
}
