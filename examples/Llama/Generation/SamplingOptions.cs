namespace Mustafar.Examples.Llama.Generation;

/// <summary>How the next token is chosen from the model's scores.</summary>
public sealed record SamplingOptions
{
    private readonly double _temperature;
    private readonly int _topK;
    private readonly double _topP = 1;
    private readonly double _frequencyPenalty;
    private readonly double _presencePenalty;

    /// <summary>Divides the scores; 0 takes the likeliest token.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is negative or not finite.</exception>
    public double Temperature
    {
        get => _temperature;
        init => _temperature = value >= 0 && float.IsFinite((float)value)
            ? value
            : throw new ArgumentOutOfRangeException(nameof(Temperature), value, "Expected a finite number from 0.");
    }

    /// <summary>Draws from this many of the likeliest tokens; 0 from all.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is negative.</exception>
    public int TopK
    {
        get => _topK;
        init => _topK = value >= 0 ? value : throw new ArgumentOutOfRangeException(nameof(TopK), value, "Expected 0 or more tokens.");
    }

    /// <summary>Draws from the fewest of the likeliest tokens that together have at least this probability; 1 from all.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not in (0, 1].</exception>
    public double TopP
    {
        get => _topP;
        init => _topP = value is > 0 and <= 1
            ? value
            : throw new ArgumentOutOfRangeException(nameof(TopP), value, "Expected a probability above 0, at most 1.");
    }

    /// <summary>Taken from a token's score for each time that it was chosen before; negative values favour repetition.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not finite.</exception>
    public double FrequencyPenalty
    {
        get => _frequencyPenalty;
        init => _frequencyPenalty = Finite(value, nameof(FrequencyPenalty));
    }

    /// <summary>Taken from a token's score if it was chosen before; negative values favour repetition.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not finite.</exception>
    public double PresencePenalty
    {
        get => _presencePenalty;
        init => _presencePenalty = Finite(value, nameof(PresencePenalty));
    }

    /// <summary>Start of the random numbers: the same seed draws the same tokens.</summary>
    public int Seed { get; init; }

    private static double Finite(double value, string name) =>
        float.IsFinite((float)value) ? value : throw new ArgumentOutOfRangeException(name, value, "Expected a finite number.");
}
