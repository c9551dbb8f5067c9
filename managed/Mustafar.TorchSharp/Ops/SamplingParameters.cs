using Mustafar.Native;

namespace Mustafar;

/// <summary>How one sequence's next token is chosen: penalties first, then temperature, top-k, top-p and min-p.</summary>
public sealed record SamplingParameters
{
    private readonly double _temperature = 1;
    private readonly int _topK;
    private readonly double _topP = 1;
    private readonly double _minP;
    private readonly double _repetitionPenalty = 1;
    private readonly double _frequencyPenalty;
    private readonly double _presencePenalty;

    /// <summary>Always the likeliest token.</summary>
    public static SamplingParameters Greedy { get; } = new() { Temperature = 0 };

    /// <summary>Divides the logits; 0 decodes greedily.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is negative or not finite.</exception>
    public double Temperature
    {
        get => _temperature;
        init => _temperature = value >= 0 && float.IsFinite((float)value)
            ? value
            : throw new ArgumentOutOfRangeException(nameof(Temperature), value, "Expected a finite number of at least 0.");
    }

    /// <summary>Sample only from this many of the likeliest tokens; 0: from all.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is negative.</exception>
    public int TopK
    {
        get => _topK;
        init => _topK = value >= 0 ? value : throw new ArgumentOutOfRangeException(nameof(TopK), value, "Expected at least 0.");
    }

    /// <summary>Sample only from the smallest set of likeliest tokens with at least this share of the probability that top-k
    /// left.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not within 0 to 1.</exception>
    public double TopP
    {
        get => _topP;
        init => _topP = Part(value, nameof(TopP));
    }

    /// <summary>Sample only from tokens with at least this share of the likeliest one's probability; 0: from all.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not within 0 to 1.</exception>
    public double MinP
    {
        get => _minP;
        init => _minP = Part(value, nameof(MinP));
    }

    /// <summary>Logits of tokens that are in the prompt or were chosen before are divided by it if above 0, otherwise multiplied (arXiv
    /// 1909.05858); 1: no penalty.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not a positive finite number.</exception>
    public double RepetitionPenalty
    {
        get => _repetitionPenalty;
        init => _repetitionPenalty = (float)value > 0 && float.IsFinite((float)value)
            ? value
            : throw new ArgumentOutOfRangeException(nameof(RepetitionPenalty), value, "Expected a positive finite number.");
    }

    /// <summary>Subtracted from a token's logit for each time that it was chosen; 0: no penalty.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not finite.</exception>
    public double FrequencyPenalty
    {
        get => _frequencyPenalty;
        init => _frequencyPenalty = Finite(value, nameof(FrequencyPenalty));
    }

    /// <summary>Subtracted from a token's logit if it was chosen before; 0: no penalty.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not finite.</exception>
    public double PresencePenalty
    {
        get => _presencePenalty;
        init => _presencePenalty = Finite(value, nameof(PresencePenalty));
    }

    /// <summary>Random seed: the same seed draws the same tokens from the same logits, on every device.</summary>
    public ulong Seed { get; init; }

    /// <summary>Whether there is any penalty; a <see cref="SamplingState"/> must be made for it.</summary>
    public bool HasPenalties => RepetitionPenalty != 1 || FrequencyPenalty != 0 || PresencePenalty != 0;

    internal NativeSamplingOptions Native => new()
    {
        Temperature = (float)Temperature,
        TopK = TopK,
        TopP = (float)TopP,
        MinP = (float)MinP,
        RepetitionPenalty = (float)RepetitionPenalty,
        FrequencyPenalty = (float)FrequencyPenalty,
        PresencePenalty = (float)PresencePenalty,
        Seed = Seed,
    };

    private static double Part(double value, string name) =>
        value is >= 0 and <= 1 ? value : throw new ArgumentOutOfRangeException(name, value, "Expected a probability from 0 to 1.");

    private static double Finite(double value, string name) =>
        float.IsFinite((float)value) ? value : throw new ArgumentOutOfRangeException(name, value, "Expected a finite number.");
}
