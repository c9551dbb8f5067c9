using System.Runtime.CompilerServices;

namespace Mustafar;

/// <summary>
/// The scaling of rotary wavelengths in Llama 3.1 and later (<c>rope_type</c> "llama3"): long wavelengths are stretched by
/// <see cref="Factor"/>, short ones are unchanged, and those in between are interpolated.
/// </summary>
/// <remarks>
/// What counts is how many turns a pair of channels makes within <see cref="OriginalMaxPositions"/>: a wavelength with fewer turns than
/// <see cref="LowFrequencyFactor"/> is long, one with more than <see cref="HighFrequencyFactor"/> is short. The object is immutable, so any
/// thread may use it.
/// </remarks>
public sealed record Llama3RotaryScaling
{
    private readonly double _factor = 8;
    private readonly double _lowFrequencyFactor = 1;
    private readonly double _highFrequencyFactor = 4;
    private readonly int _originalMaxPositions = 8192;

    /// <summary>Factor by which long wavelengths are stretched. Default 8.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not a positive finite number.</exception>
    public double Factor
    {
        get => _factor;
        init => _factor = Positive(value);
    }

    /// <summary>Turns below which a wavelength is long. Default 1.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not a positive finite number.</exception>
    public double LowFrequencyFactor
    {
        get => _lowFrequencyFactor;
        init => _lowFrequencyFactor = Positive(value);
    }

    /// <summary>Turns above which a wavelength is short; more than <see cref="LowFrequencyFactor"/>. Default 4.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not a positive finite number.</exception>
    public double HighFrequencyFactor
    {
        get => _highFrequencyFactor;
        init => _highFrequencyFactor = Positive(value);
    }

    /// <summary>Context length of pre-training, in tokens. Default 8192.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int OriginalMaxPositions
    {
        get => _originalMaxPositions;
        init => _originalMaxPositions = value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(OriginalMaxPositions), value, "Expected a positive number of tokens.");
    }

    /// <summary>The scaled angle per position of a pair of channels.</summary>
    /// <param name="angle">Its angle per position without scaling, in radians.</param>
    internal double Scale(double angle)
    {
        double turns = OriginalMaxPositions * angle / (2 * Math.PI);
        double keep = Math.Clamp((turns - LowFrequencyFactor) / (HighFrequencyFactor - LowFrequencyFactor), 0, 1);
        return angle * (keep + ((1 - keep) / Factor));
    }

    /// <summary>Checks that the values fit together.</summary>
    /// <exception cref="ArgumentException">The turns of short wavelengths are not more than those of long ones.</exception>
    internal void Validate()
    {
        if (HighFrequencyFactor <= LowFrequencyFactor)
        {
            throw new ArgumentException(
                $"Expected more than {LowFrequencyFactor}, the {nameof(LowFrequencyFactor)}, but got {HighFrequencyFactor}.",
                nameof(HighFrequencyFactor));
        }
    }

    private static double Positive(double value, [CallerMemberName] string name = "") => double.IsFinite(value) && value > 0
        ? value
        : throw new ArgumentOutOfRangeException(name, value, "Expected a positive finite number.");
}
