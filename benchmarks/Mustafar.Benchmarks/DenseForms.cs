using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>
/// The ways to compute a dense decode step with torch. The query heads of a group are folded into the query axis, so that no form repeats
/// keys and values.
/// </summary>
internal sealed class DenseForms : IDisposable
{
    private readonly Tensor _query;
    private readonly Tensor _keys;
    private readonly Tensor _keysTransposed;
    private readonly Tensor _values;
    private readonly Scalar _scale;

    internal DenseForms(Tensor query, Tensor keys, Tensor values)
    {
        long[] shape = keys.shape;
        _query = query.reshape(shape[0], shape[1], -1, shape[3]).DetachFromDisposeScope();
        _keys = keys;
        _keysTransposed = keys.transpose(2, 3).DetachFromDisposeScope();
        _values = values;
        _scale = 1 / Math.Sqrt(shape[3]);
    }

    /// <summary>scaled_dot_product_attention.</summary>
    internal Tensor Sdpa() => nn.functional.scaled_dot_product_attention(_query, _keys, _values);

    /// <summary>Matrix product, softmax, matrix product.</summary>
    internal Tensor MatMul() => matmul(softmax(matmul(_query, _keysTransposed).mul_(_scale), -1), _values);

    public void Dispose()
    {
        _query.Dispose();
        _keysTransposed.Dispose();
    }
}
