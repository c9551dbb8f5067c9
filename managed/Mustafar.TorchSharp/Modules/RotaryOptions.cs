namespace Mustafar;

/// <summary>How rotary position embedding rotates a head's channels.</summary>
/// <remarks>The object is immutable, so any thread may use it.</remarks>
public sealed record RotaryOptions
{
    private readonly int _headDim = 128;
    private readonly double _theta = 10_000;

    /// <summary>Number of channels of a head: even, since channel i is rotated together with channel i + head_dim / 2.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive and even.</exception>
    public int HeadDim
    {
        get => _headDim;
        init => _headDim = value > 0 && value % 2 == 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(HeadDim), value, "Expected a positive even number of channels.");
    }

    /// <summary>Base of the wavelengths: pair i is rotated by position · Theta^(−2i / head_dim).</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not a positive finite number.</exception>
    public double Theta
    {
        get => _theta;
        init => _theta = double.IsFinite(value) && value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(Theta), value, "Expected a positive finite number.");
    }

    /// <summary>How the wavelengths are scaled for contexts longer than those of pre-training; not at all if null.</summary>
    public Llama3RotaryScaling? Scaling { get; init; }

    /// <summary>The angle per position of each of the head_dim / 2 pairs of channels, in radians.</summary>
    public double[] AnglesPerPosition()
    {
        double[] angles = new double[HeadDim / 2];
        for (int i = 0; i < angles.Length; i++)
        {
            double angle = Math.Pow(Theta, -2.0 * i / HeadDim);
            angles[i] = Scaling?.Scale(angle) ?? angle;
        }

        return angles;
    }
}
