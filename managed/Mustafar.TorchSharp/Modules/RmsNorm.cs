using System.Diagnostics.CodeAnalysis;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Root-mean-square layer normalisation (arXiv 1910.07467), computed in float32.</summary>
/// <remarks>Several threads may call <see cref="forward"/> at once, as long as none converts, loads or disposes the module.</remarks>
public sealed class RmsNorm : nn.Module<Tensor, Tensor>
{
    private readonly Scalar _eps;
#pragma warning disable IDE1006 // the field's name is the key of the state dictionary
    private readonly Parameter weight;
#pragma warning restore IDE1006

    /// <summary>Makes a layer whose weight is all ones, like a new torch layer.</summary>
    /// <param name="size">Elements of the last axis.</param>
    /// <param name="eps">Added to the mean square.</param>
    /// <param name="dtype">Type of the weight.</param>
    /// <param name="device">Device of the weight; the CPU if null.</param>
    /// <exception cref="ArgumentOutOfRangeException">The size is not positive, or eps negative or not finite.</exception>
    // RegisterComponents finds the weight by reflection; compiled ahead of time, an application has only the fields that are named.
    [DynamicDependency(DynamicallyAccessedMemberTypes.NonPublicFields, typeof(RmsNorm))]
    public RmsNorm(int size, double eps, ScalarType dtype, Device? device = null)
        : base(nameof(RmsNorm))
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(size);
        _eps = double.IsFinite(eps) && eps >= 0
            ? eps
            : throw new ArgumentOutOfRangeException(nameof(eps), eps, "Expected a finite number of at least 0.");
        Eps = eps;
        weight = new Parameter(ones(size, dtype: dtype, device: device), requires_grad: false);
        RegisterComponents();
    }

    /// <summary>Factors of the elements, [size].</summary>
    public Parameter Weight => weight;

    /// <summary>Added to the mean square.</summary>
    public double Eps { get; }

    /// <summary>x / √(mean(x²) + eps) · weight over the last axis.</summary>
    /// <param name="input">[.., size].</param>
    /// <returns>A new tensor of the same shape and type.</returns>
    public override Tensor forward(Tensor input)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor x = input.to(ScalarType.Float32);
        Tensor factor = (x * x).mean([-1], keepdim: true).add_(_eps, Scalars.One).rsqrt_();
        return (x * factor).to(input.dtype).mul_(weight).MoveToOuterDisposeScope();
    }
}
