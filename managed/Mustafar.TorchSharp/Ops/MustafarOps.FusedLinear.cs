using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

public static unsafe partial class MustafarOps
{
    /// <summary>
    /// A linear layer for any number of rows, with the operations before and after it, in the fastest way: <see cref="Linear"/> for
    /// one row, for 16-bit types on a Hopper GPU for up to <see cref="MaxLinearRows"/>, and on a CPU with AVX2 or AVX-512 for up to 16
    /// (BFloat16 with AVX-512 BF16: 8); otherwise torch's product with the operations of this class around it. No gradient is recorded.
    /// </summary>
    /// <param name="input">Float32, Float16 or BFloat16 [.., in_features].</param>
    /// <param name="weight">As for <see cref="Linear"/>.</param>
    /// <param name="fusion">The operations in addition to the product; none if null.</param>
    /// <param name="output">Receives the result, [.., out_features], separate from the input; a new tensor if null.</param>
    /// <param name="buffers">Buffers for intermediate results, named "norm", "product" and "activated"; new tensors if null.</param>
    /// <returns>The output.</returns>
    /// <exception cref="ArgumentException">A type, device, layout or shape doesn't fit.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><see cref="LinearFusion.Eps"/> is negative or not finite.</exception>
    public static Tensor FusedLinear(
        Tensor input, Tensor weight, LinearFusion? fusion = null, Tensor? output = null, StepBuffers? buffers = null)
    {
        fusion ??= NoFusion;
        (long inFeatures, long outFeatures) = CheckLinear(input, weight, fusion, output);
        long rows = MatrixRows.Count(input);
        if (rows == 1 && (input.device_type == DeviceType.CPU || inFeatures <= MaxLinearFeatures))
        {
            return Linear(input, weight, fusion, output);
        }

        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        Tensor result = output ?? empty([.. input.Sizes()[..^1], outFeatures], dtype: input.dtype, device: input.device);
        Tensor source = input;
        if (fusion.Norm is not null)
        {
            source = RmsNorm(input, fusion.Norm, fusion.Eps, output: Temporary("norm", input.Sizes()));
            fusion = fusion with { Norm = null };
        }

        Tensor target = result.view(rows, outFeatures);
        source = source.reshape(rows, inFeatures);
        Tensor? residual = fusion.Residual?.reshape(rows, outFeatures);
        if (rows is > 1 and <= MaxLinearRows && ReadsWeightOnce(source, weight, fusion, target))
        {
            _ = Linear(source, weight, fusion with { Residual = residual }, target);
            return Returned(result, output);
        }

        // A residual that is also the output already holds its values before the product.
        bool inPlace = output is not null && fusion.Residual is not null
            && TensorAccess.Pointer(fusion.Residual) == TensorAccess.Pointer(output);
        Tensor product = fusion.Gated ? Temporary("product", rows, 2 * outFeatures) : target;
        Multiply(product, source, weight, adds: inPlace && !fusion.Gated);
        if (fusion.Bias is not null)
        {
            product.add_(fusion.Bias, Scalars.One);
        }

        if (fusion.Gated)
        {
            Tensor activated = SiluMul(product, inPlace ? Temporary("activated", rows, outFeatures) : target);
            if (inPlace)
            {
                target.add_(activated, Scalars.One);
            }
        }

        if (fusion.Residual is not null && !inPlace)
        {
            target.add_(residual!, Scalars.One);
        }

        return Returned(result, output);

        Tensor Temporary(string name, params ReadOnlySpan<long> shape) => buffers?.Get(name, input.dtype, shape)
            ?? empty(shape, dtype: input.dtype, device: input.device);
    }

    // product = source · weightᵀ, or added to it.
    private static void Multiply(Tensor product, Tensor source, Tensor weight, bool adds)
    {
        Tensor transposed = weight.t();
        if (!TorchShim.HasProducts(product.device))
        {
            Tensor made = matmul(source, transposed);
            _ = adds ? product.add_(made, Scalars.One) : product.copy_(made);
        }
        else if (adds)
        {
            TorchShim.AddProduct(product, source, transposed);
        }
        else
        {
            TorchShim.Product(product, source, transposed);
        }
    }
}
