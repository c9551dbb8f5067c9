using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Models.Evaluation;

/// <summary>Numbers rounded to formats of few bits, in Float32.</summary>
internal static class SimulatedNumbers
{
    // The largest 4-bit integer of the kept numbers.
    private const int MostOfFourBits = 7;

    private static readonly Scalar s_mostOfFourBits = MostOfFourBits;
    private static readonly Scalar s_leastOfFourBits = -MostOfFourBits;
    private static readonly Scalar s_largestE4M3 = 448;
    private static readonly Scalar s_smallestE4M3 = -448;
    private static readonly Scalar s_leastExponent = -6;

    /// <summary>Integers 0 to 2^bits − 1, in equal steps from the smallest number of each row [.., n] to the largest.</summary>
    internal static Tensor Asymmetric(Tensor rows, int bits)
    {
        int most = (1 << bits) - 1;
        (Tensor low, Tensor high) = (rows.amin([-1], keepdim: true), rows.amax([-1], keepdim: true));
        (Tensor smallest, Tensor step) = (Rounded(low), Step((high - low).Times(1.0 / most)));
        Scalar largest = most;
        Tensor integers = ((rows - smallest) / step).round().clamp(Scalars.Zero, largest);
        GC.KeepAlive(largest);
        return smallest.addcmul(integers, step, Scalars.One);
    }

    /// <summary>Each row's channels of largest magnitude, and for each of the others its sign times their mean magnitude; zero counts as
    /// positive.</summary>
    /// <param name="rows">The rows [.., n].</param>
    /// <param name="kept">Number of kept channels.</param>
    /// <param name="bits">Bits of the kept numbers: 16, unchanged, or 4, for −7 to 7 times a scale per row.</param>
    internal static Tensor Signs(Tensor rows, int kept, int bits)
    {
        Tensor magnitudes = rows.abs();
        Tensor largest = magnitudes.topk(kept, -1).indexes;
        Tensor isKept = zeros_like(rows, dtype: ScalarType.Bool).scatter_(-1, largest, ones_like(largest, dtype: ScalarType.Bool));
        Tensor mean = Rounded(magnitudes.masked_fill(isKept, Scalars.Zero).sum(-1, keepdim: true).Times(1.0 / (rows.size(-1) - kept)));
        Tensor signs = where(rows.lt(Scalars.Zero), mean.neg(), mean);
        return where(isKept, bits == 4 ? InFourBits(rows, magnitudes) : rows, signs);
    }

    /// <summary>FP8 with 4 bits of exponent and 3 of mantissa (e4m3fn), rounded to nearest even and clamped to ±448.</summary>
    internal static Tensor E4M3(Tensor rows)
    {
        // Between two powers of two, numbers are an eighth of the lower one apart; below 2^-6 the spacing stays the same.
        Tensor bounded = rows.clamp(s_smallestE4M3, s_largestE4M3);
        Tensor step = bounded.abs().log2().floor().clamp(s_leastExponent).exp2().Times(1.0 / 8);
        return (bounded / step).round() * step;
    }

    private static Tensor InFourBits(Tensor rows, Tensor magnitudes)
    {
        Tensor step = Step(magnitudes.amax([-1], keepdim: true).Times(1.0 / MostOfFourBits));
        return (rows / step).round().clamp(s_leastOfFourBits, s_mostOfFourBits) * step;
    }

    // Any step will do for rows whose numbers are all equal.
    private static Tensor Step(Tensor step)
    {
        Tensor rounded = Rounded(step);
        return rounded.masked_fill(rounded.eq(Scalars.Zero), Scalars.One);
    }

    private static Tensor Rounded(Tensor numbers) => numbers.to(ScalarType.Float16).to(ScalarType.Float32);
}
