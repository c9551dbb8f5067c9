using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>The operations of a decode step in float64 on the CPU, and what their results are measured by.</summary>
internal static class ReferenceStep
{
    internal static Tensor Exact(Tensor tensor) => tensor.cpu().to(ScalarType.Float64);

    internal static Tensor RmsNorm(Tensor x, Tensor weight, double eps)
    {
        Tensor exact = Exact(x);
        return exact / ((exact * exact).mean([-1], keepdim: true) + eps).sqrt() * Exact(weight);
    }

    /// <summary>The same in the type of x, as Llama's implementations do it: only the norm itself is computed in float32.</summary>
    internal static Tensor RmsNormInTorch(Tensor x, Tensor weight, double eps)
    {
        Tensor wide = x.to(ScalarType.Float32);
        return (wide * ((wide * wide).mean([-1], keepdim: true) + eps).rsqrt()).to(x.dtype) * weight;
    }

    internal static Tensor SiluMul(Tensor gateUp)
    {
        Tensor[] parts = Exact(gateUp).chunk(2, -1);
        return parts[0] / (1 + (-parts[0]).exp()) * parts[1];
    }

    /// <summary>x: [batch, heads, tokens, head_dim]; positions: [batch, tokens]; frequencies: [rotary_dim / 2].</summary>
    internal static Tensor Rotate(Tensor x, Tensor positions, Tensor frequencies, double scaling)
    {
        Tensor exact = Exact(x);
        Tensor angles = Exact(positions).unsqueeze(1).unsqueeze(-1) * Exact(frequencies);
        return Turn(exact, angles.cos() * scaling, angles.sin() * scaling);
    }

    /// <summary>The same in the type of x.</summary>
    internal static Tensor Turn(Tensor x, Tensor cos, Tensor sin)
    {
        long pairs = cos.shape[^1], headDim = x.shape[^1];
        Tensor a = x.narrow(-1, 0, pairs), b = x.narrow(-1, pairs, pairs);
        return cat([(a * cos) - (b * sin), (b * cos) + (a * sin), x.narrow(-1, 2 * pairs, headDim - (2 * pairs))], -1);
    }

    /// <summary>Asserts that the largest error is at most twice that of torch in the same type, and one rounding where torch is exact.</summary>
    internal static void AtMostTwiceTorchs(Tensor actual, Tensor exact, Tensor torchs, string what)
    {
        Assert.That(actual.shape, Is.EqualTo(exact.shape), $"{what}: shape");
        Assert.That(actual.isfinite().all().item<bool>(), $"{what}: not finite");
        double rounding = actual.dtype == ScalarType.Float32 ? 1e-6 : actual.dtype == ScalarType.Float16 ? 1 / 2048d : 1 / 256d;
        double error = (Exact(actual) - exact).abs().max().item<double>();
        double allowed = (2 * (Exact(torchs) - exact).abs().max().item<double>()) + (rounding * exact.abs().max().item<double>());
        Assert.That(error, Is.LessThanOrEqualTo(allowed), what);
    }
}
