using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>Compares tensors; a failure names the worst element.</summary>
internal static class Compare
{
    /// <summary>What attention over some hundred tokens of unit variance may be off by, relative and absolute.</summary>
    internal static double AttentionTolerance(ScalarType dtype) => dtype == ScalarType.Float32 ? 2e-5 : dtype == ScalarType.Float16 ? 3e-3 : 2.5e-2;

    /// <summary>Root mean square of the difference over that of the expected values.</summary>
    internal static double RelativeError(Tensor actual, Tensor expected)
    {
        using var scope = NewDisposeScope();
        Tensor reference = expected.cpu();
        Tensor difference = actual.cpu().to(ScalarType.Float64) - reference;
        return (difference.norm() / reference.norm().clamp_min(1e-30)).item<double>();
    }

    /// <summary>NaNs and infinities must be at the same places, all else within absolute + relative · |expected|.</summary>
    internal static void Close(Tensor actual, Tensor expected, double relative, double absolute, string what)
    {
        Assert.That(actual.shape, Is.EqualTo(expected.shape), $"{what}: shape");
        using var scope = NewDisposeScope();
        double[] a = actual.cpu().to(ScalarType.Float64).contiguous().data<double>().ToArray();
        double[] e = expected.cpu().to(ScalarType.Float64).contiguous().data<double>().ToArray();
        int worst = -1;
        double excess = 0;
        for (int i = 0; i < a.Length; i++)
        {
            bool special = !double.IsFinite(a[i]) || !double.IsFinite(e[i]);
            double beyond = special
                ? a[i].Equals(e[i]) ? 0 : double.PositiveInfinity
                : Math.Abs(a[i] - e[i]) - absolute - (relative * Math.Abs(e[i]));
            if (beyond > excess)
            {
                (worst, excess) = (i, beyond);
            }
        }

        if (worst >= 0)
        {
            Assert.Fail($"{what}: at [{string.Join(", ", Index(worst, expected.shape))}] expected {e[worst]:g9}, got {a[worst]:g9}.");
        }
    }

    /// <summary>Bit for bit the same, NaN like NaN.</summary>
    internal static void Same(Tensor actual, Tensor expected, string what)
    {
        Assert.That(actual.dtype, Is.EqualTo(expected.dtype), $"{what}: dtype");
        Close(actual, expected, 0, 0, what);
    }

    private static IEnumerable<long> Index(long flat, long[] shape)
    {
        long[] index = new long[shape.Length];
        for (int d = shape.Length - 1; d >= 0; d--)
        {
            (flat, index[d]) = Math.DivRem(flat, shape[d]);
        }

        return index;
    }
}
