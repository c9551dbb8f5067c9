using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

public static unsafe partial class MustafarOps
{
    /// <summary>
    /// RMSNorm over the last axis (arXiv 1910.07467), optionally of the sum with a residual: x / √(mean(x²) + eps) · weight with
    /// x = input or residual + input. Computed in float32 and rounded once; no gradient is recorded.
    /// </summary>
    /// <param name="input">Float32, Float16 or BFloat16 [.., hidden], hidden 1 to 2²⁰.</param>
    /// <param name="weight">[hidden] in the input's type.</param>
    /// <param name="eps">Added to the mean square: finite, at least 0.</param>
    /// <param name="residual">Like the input. It becomes residual + input, rounded to its type, and that is normalised.</param>
    /// <param name="output">Receives the result; like the input, which it may be. A new tensor if null.</param>
    /// <returns>The output.</returns>
    /// <exception cref="ArgumentException">A type, device, layout or shape doesn't fit.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="eps"/> is negative or not finite.</exception>
    public static Tensor RmsNorm(Tensor input, Tensor weight, double eps, Tensor? residual = null, Tensor? output = null)
    {
        long width = LastAxis(input, nameof(input));
        TensorAccess.Validate(weight, nameof(weight), input.dtype, input.device, width);
        float epsilon = Epsilon(eps);
        ValidateOptional(residual, nameof(residual), input, input.Sizes());
        ValidateOptional(output, nameof(output), input, input.Sizes());
        using DisposeScope scope = NewDisposeScope();
        Tensor result = output ?? empty(input.Sizes(), dtype: input.dtype, device: input.device);
        Tensor scale = weight.contiguous();
        NativeContext context = TensorAccess.Context(input.device);
        NativeNorm norm = new()
        {
            DType = (int)TensorAccess.DTypeOf(input.dtype),
            HiddenSize = checked((int)width),
            Rows = MatrixRows.Count(input),
            Eps = epsilon,
            Input = MatrixRows.Read(ref input),
            Residual = residual is null ? default : MatrixRows.AsItIs(residual, nameof(residual)),
            Weight = TensorAccess.Pointer(scale),
            Output = MatrixRows.AsItIs(result, nameof(output)),
        };
        NativeCall.Check(NativeMethods.RmsNorm(&context, &norm));
        GC.KeepAlive(input);
        GC.KeepAlive(residual);
        GC.KeepAlive(scale);
        return Returned(result, output);
    }
}
