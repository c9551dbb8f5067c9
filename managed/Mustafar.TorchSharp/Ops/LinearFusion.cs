using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What <see cref="MustafarOps.Linear"/> computes in addition to its product; nothing by default.</summary>
public sealed record LinearFusion
{
    /// <summary>The weight [in_features] of an RMSNorm of the input, whose result is rounded to the input's type; none if null.</summary>
    public Tensor? Norm { get; init; }

    /// <summary>Added to the norm's mean square: finite, at least 0.</summary>
    public double Eps { get; init; }

    /// <summary>Added to the product: one element per row of the weight; nothing if null.</summary>
    public Tensor? Bias { get; init; }

    /// <summary>Whether the weight's first half is the gate's and the second that of up: the output is silu(gate) · up.</summary>
    public bool Gated { get; init; }

    /// <summary>Added to the output, [.., out_features]; may be the output. Nothing if null.</summary>
    public Tensor? Residual { get; init; }
}
