using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Heads of some tokens, with any strides whose last one is 1: parts of one product of the q, k and v projections, for
/// example.</summary>
/// <param name="Query">[batch, num_heads, tokens, head_dim].</param>
/// <param name="Key">[batch, num_kv_heads, tokens, head_dim].</param>
/// <param name="Value">Like <paramref name="Key"/>. It is not rotated but copied to its output; null if there is nothing to copy.</param>
public sealed record RotaryHeads(Tensor Query, Tensor Key, Tensor? Value = null);

/// <summary>RMSNorm of each head before it is rotated, as in Qwen3.</summary>
/// <param name="Query">Weight [head_dim] of the queries' norm; null for none.</param>
/// <param name="Key">Weight [head_dim] of the keys' norm; null for none.</param>
/// <param name="Eps">Added to the mean square: finite, at least 0.</param>
public sealed record HeadNorms(Tensor? Query, Tensor? Key, double Eps);

/// <summary>The angles by which pairs of channels are rotated: computed for each position, or from tables.</summary>
public sealed class RotaryAngles
{
    private RotaryAngles(Tensor? frequencies, Tensor? cosines, Tensor? sines, double scaling)
    {
        Frequencies = frequencies;
        Cosines = cosines;
        Sines = sines;
        Scaling = double.IsFinite(scaling) && (float)scaling > 0 && float.IsFinite((float)scaling)
            ? scaling
            : throw new ArgumentOutOfRangeException(nameof(scaling), scaling, "Expected a finite number above 0.");
    }

    /// <summary>Float64 [rotary_dim / 2], or null.</summary>
    internal Tensor? Frequencies { get; }

    /// <summary>Float32 [positions, rotary_dim / 2], or null.</summary>
    internal Tensor? Cosines { get; }

    /// <summary>Like <see cref="Cosines"/>.</summary>
    internal Tensor? Sines { get; }

    /// <summary>Factor of all cosines and sines.</summary>
    internal double Scaling { get; }

    /// <summary>Pair i is rotated by position · frequencies[i] radians; angles are computed in float64.</summary>
    /// <param name="frequencies">Float64 [rotary_dim / 2], contiguous, on the device of the heads
    /// (<see cref="RotaryOptions.AnglesPerPosition"/> computes them). Not disposed by this object.</param>
    /// <param name="scaling">Factor of all cosines and sines (YaRN's attention factor).</param>
    /// <exception cref="ArgumentException">The type or shape doesn't fit.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The scaling is not a positive finite number.</exception>
    public static RotaryAngles PerPosition(Tensor frequencies, double scaling = 1)
    {
        ArgumentNullException.ThrowIfNull(frequencies);
        return frequencies.dtype == ScalarType.Float64 && frequencies.dim() == 1 && frequencies.numel() > 0 && frequencies.is_contiguous()
            ? new RotaryAngles(frequencies, null, null, scaling)
            : throw new ArgumentException(
                $"Expected contiguous Float64 [rotary_dim / 2], but got {frequencies.dtype} [{string.Join(", ", frequencies.shape)}].",
                nameof(frequencies));
    }

    /// <summary>Pair i of position p is rotated by the angle whose cosine and sine are in row p, column i.</summary>
    /// <param name="cosines">Float32 [positions, rotary_dim / 2], contiguous, on the device of the heads. Not disposed by this object.</param>
    /// <param name="sines">Like <paramref name="cosines"/>.</param>
    /// <param name="scaling">Factor of all cosines and sines.</param>
    /// <exception cref="ArgumentException">A type or shape doesn't fit.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The scaling is not a positive finite number.</exception>
    public static RotaryAngles FromTables(Tensor cosines, Tensor sines, double scaling = 1)
    {
        Table(cosines, nameof(cosines));
        Table(sines, nameof(sines));
        return sines.Sizes().AsSpan().SequenceEqual(cosines.Sizes())
            ? new RotaryAngles(null, cosines, sines, scaling)
            : throw new ArgumentException(
                $"Expected the cosines' shape [{string.Join(", ", cosines.shape)}], but got [{string.Join(", ", sines.shape)}].", nameof(sines));
    }

    private static void Table(Tensor table, string name)
    {
        ArgumentNullException.ThrowIfNull(table, name);
        if (table.dtype != ScalarType.Float32 || table.dim() != 2 || table.numel() == 0 || !table.is_contiguous())
        {
            throw new ArgumentException(
                $"Expected contiguous Float32 [positions, rotary_dim / 2], but got {table.dtype} [{string.Join(", ", table.shape)}].", name);
        }
    }
}
