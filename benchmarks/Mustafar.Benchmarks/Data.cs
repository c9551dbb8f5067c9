using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>Random tensors, normally distributed, the same in each run.</summary>
internal static class Data
{
    internal static Tensor Random(ScalarType dtype, params long[] shape) => randn(shape).to(dtype);

    /// <summary>Options that keep so many channels.</summary>
    internal static MustafarOptions Options(int keep, int headDim) => new()
    {
        KeySparsity = (headDim - keep) / (double)headDim,
        ValueSparsity = (headDim - keep) / (double)headDim,
        KeepMultiple = 1,
    };
}
