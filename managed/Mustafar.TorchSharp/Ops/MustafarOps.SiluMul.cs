using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

public static unsafe partial class MustafarOps
{
    /// <summary>
    /// silu(gate) · up with silu(x) = x / (1 + exp(−x)), the gated activation of Llama's MLP, from one product of the gate and up
    /// projections. Computed in float32 and rounded once; no gradient is recorded.
    /// </summary>
    /// <param name="gateUp">Float32, Float16 or BFloat16 [.., 2 · width]: the gate's elements before those of up.</param>
    /// <param name="output">Receives the result, [.., width], separate from <paramref name="gateUp"/>; a new tensor if null.</param>
    /// <returns>The output.</returns>
    /// <exception cref="ArgumentException">A type, device, layout or shape doesn't fit.</exception>
    public static Tensor SiluMul(Tensor gateUp, Tensor? output = null)
    {
        long both = LastAxis(gateUp, nameof(gateUp));
        if (both % 2 != 0)
        {
            throw new ArgumentException($"Expected an even number of elements, gate and up, on the last axis, but got {both}.", nameof(gateUp));
        }

        long[] shape = [.. gateUp.Sizes()[..^1], both / 2];
        ValidateOptional(output, nameof(output), gateUp, shape);
        if (output is not null)
        {
            MatrixRows.Apart(output, nameof(output), gateUp, nameof(gateUp));
        }

        using DisposeScope scope = NewDisposeScope();
        Tensor result = output ?? empty(shape, dtype: gateUp.dtype, device: gateUp.device);
        NativeContext context = TensorAccess.Context(gateUp.device);
        long count = MatrixRows.Count(gateUp);
        NativeRows input = MatrixRows.Read(ref gateUp), target = MatrixRows.AsItIs(result, nameof(output));
        NativeCall.Check(NativeMethods.SiluMul(
            &context, (int)TensorAccess.DTypeOf(gateUp.dtype), count, checked((int)(both / 2)), &input, &target));
        GC.KeepAlive(gateUp);
        return Returned(result, output);
    }
}
