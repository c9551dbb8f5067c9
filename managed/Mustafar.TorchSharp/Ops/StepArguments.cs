using Mustafar.Native;
using static TorchSharp.torch;

namespace Mustafar;

// Checks common to the operations of a decode step.
public static unsafe partial class MustafarOps
{
    /// <summary>The size of the last axis of a dense tensor for such operations.</summary>
    private static long LastAxis(Tensor tensor, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.dtype is not (ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
        {
            throw new ArgumentException($"Expected Float32, Float16 or BFloat16, but got {tensor.dtype}.", name);
        }

        if (tensor.is_sparse)
        {
            throw new ArgumentException("Expected a strided tensor, but got a sparse one.", name);
        }

        long[] shape = tensor.Sizes();
        return shape.Length > 0 && shape[^1] > 0
            ? shape[^1]
            : throw new ArgumentException($"Expected shape [.., width] with a width of at least 1, but got [{string.Join(", ", shape)}].", name);
    }

    /// <summary>Checks an optional tensor that must have the type and device of another.</summary>
    internal static void ValidateOptional(Tensor? tensor, string name, Tensor like, params ReadOnlySpan<long> shape)
    {
        if (tensor is not null)
        {
            TensorAccess.Validate(tensor, name, like.dtype, like.device, shape);
        }
    }

    /// <summary>The number that a norm adds to the mean square.</summary>
    internal static float Epsilon(double eps) => eps >= 0 && float.IsFinite((float)eps)
        ? (float)eps
        : throw new ArgumentOutOfRangeException(nameof(eps), eps, "Expected a finite number of at least 0.");

    /// <summary>An operation's result: one of the caller's tensors, or a new one that leaves the dispose scope.</summary>
    private static Tensor Returned(Tensor result, Tensor? given) => given ?? result.MoveToOuterDisposeScope();

    /// <summary>The address of an optional tensor. Keep the tensor alive past the call.</summary>
    internal static void* PointerOrNull(Tensor? tensor) => tensor is null ? null : TensorAccess.Pointer(tensor);
}
