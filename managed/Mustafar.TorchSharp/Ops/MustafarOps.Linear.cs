using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

public static unsafe partial class MustafarOps
{
    /// <summary>The maximum number of rows for <see cref="Linear"/>.</summary>
    public const int MaxLinearRows = NativeConstants.LinearMaxRows;

    // On CUDA a row of the input is kept in shared memory.
    private const int MaxLinearFeatures = 16384;

    private static readonly LinearFusion NoFusion = new();

    /// <summary>
    /// A linear layer for few rows, with the operations before and after it: activation(norm(input) · weightᵀ + bias) + residual.
    /// Sums are float32; no gradient is recorded. The weight is read once for one row, on the CPU, and on a Hopper GPU for 16-bit types
    /// without a norm if each row of input and weight begins at a multiple of 16 bytes; otherwise several times, for at most four rows at once.
    /// </summary>
    /// <param name="input">Float32, Float16 or BFloat16 [.., in_features], at most <see cref="MaxLinearRows"/> rows.</param>
    /// <param name="weight">[out_features, in_features] in the input's type; [2 · out_features, in_features] with
    /// <see cref="LinearFusion.Gated"/>. On CUDA it may be read before the work queued ahead has finished, so that work must not write
    /// it.</param>
    /// <param name="fusion">The operations in addition to the product; none if null.</param>
    /// <param name="output">Receives the result, [.., out_features], separate from the input; a new tensor if null.</param>
    /// <returns>The output.</returns>
    /// <exception cref="ArgumentException">A type, device, layout or shape doesn't fit, or there are too many rows.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><see cref="LinearFusion.Eps"/> is negative or not finite.</exception>
    /// <exception cref="NotSupportedException">On CUDA: a row of the input is too large for shared memory.</exception>
    public static Tensor Linear(Tensor input, Tensor weight, LinearFusion? fusion = null, Tensor? output = null)
    {
        fusion ??= NoFusion;
        (long inFeatures, long outFeatures) = CheckLinear(input, weight, fusion, output);
        long rows = MatrixRows.Count(input);
        if (rows > MaxLinearRows)
        {
            throw new ArgumentException($"Expected at most {MaxLinearRows} rows, but got {rows} of shape [{string.Join(", ", input.shape)}].", nameof(input));
        }

        long[] shape = [.. input.Sizes()[..^1], outFeatures];
        using DisposeScope scope = NewDisposeScope();
        Tensor result = output ?? empty(shape, dtype: input.dtype, device: input.device);
        Tensor? norm = fusion.Norm?.contiguous(), bias = fusion.Bias?.contiguous(), residual = fusion.Residual;
        NativeContext context = TensorAccess.Context(input.device);
        NativeLinear linear = Describe(ref input, weight, fusion, result, inFeatures, outFeatures);
        linear.Norm = PointerOrNull(norm);
        linear.Bias = PointerOrNull(bias);
        linear.Residual = residual is null ? default : MatrixRows.Read(ref residual);
        NativeCall.Check(NativeMethods.LinearForward(&context, &linear));
        GC.KeepAlive(input);
        GC.KeepAlive(weight);
        GC.KeepAlive(norm);
        GC.KeepAlive(bias);
        GC.KeepAlive(residual);
        return Returned(result, output);
    }

    /// <summary>Whether <see cref="Linear"/> takes as long as reading the weight once; the arguments are checked, and there is no norm.</summary>
    private static bool ReadsWeightOnce(Tensor input, Tensor weight, LinearFusion fusion, Tensor output)
    {
        using DisposeScope scope = NewDisposeScope();
        NativeContext context = TensorAccess.Context(input.device);
        NativeLinear linear = Describe(ref input, weight, fusion, output, input.size(-1), output.size(-1));
        int result;
        NativeCall.Check(NativeMethods.LinearReadsOnce(&context, &linear, &result));
        GC.KeepAlive(input);
        GC.KeepAlive(weight);
        GC.KeepAlive(output);
        return result != 0;
    }

    // Without what is added: norm, bias and residual.
    private static NativeLinear Describe(
        ref Tensor input, Tensor weight, LinearFusion fusion, Tensor output, long inFeatures, long outFeatures) => new()
    {
        DType = (int)TensorAccess.DTypeOf(input.dtype),
        Rows = checked((int)MatrixRows.Count(input)),
        InFeatures = checked((int)inFeatures),
        OutFeatures = checked((int)outFeatures),
        Activation = (int)(fusion.Gated ? Activation.SiluMul : Activation.None),
        Eps = Epsilon(fusion.Eps),
        Input = MatrixRows.Read(ref input),
        Weight = MatrixRows.AsItIs(weight, nameof(weight)),
        Output = MatrixRows.AsItIs(output, nameof(output)),
    };

    /// <summary>Checks the arguments of a linear layer of any number of rows; returns its sizes.</summary>
    private static (long InFeatures, long OutFeatures) CheckLinear(Tensor input, Tensor weight, LinearFusion fusion, Tensor? output)
    {
        long inFeatures = LastAxis(input, nameof(input));
        ArgumentNullException.ThrowIfNull(weight);
        long parts = fusion.Gated ? 2 : 1;
        if (weight.dim() != 2 || weight.size(0) == 0 || weight.size(0) % parts != 0)
        {
            throw new ArgumentException(
                $"Expected shape [{(fusion.Gated ? "2 * out_features" : "out_features")}, {inFeatures}], but got [{string.Join(", ", weight.shape)}].",
                nameof(weight));
        }

        long outFeatures = weight.size(0) / parts;
        TensorAccess.Validate(weight, nameof(weight), input.dtype, input.device, weight.size(0), inFeatures);
        _ = MatrixRows.AsItIs(weight, nameof(weight));
        _ = Epsilon(fusion.Eps);
        ValidateOptional(fusion.Norm, nameof(fusion.Norm), input, inFeatures);
        ValidateOptional(fusion.Bias, nameof(fusion.Bias), input, weight.size(0));
        long[] shape = [.. input.Sizes()[..^1], outFeatures];
        ValidateOptional(fusion.Residual, nameof(fusion.Residual), input, shape);
        ValidateOptional(output, nameof(output), input, shape);
        if (output is not null)
        {
            _ = MatrixRows.AsItIs(output, nameof(output));
            MatrixRows.Apart(output, nameof(output), input, nameof(input));
        }

        return (inFeatures, outFeatures);
    }
}
