namespace Mustafar.Models.Generation;

/// <summary>Options of a beam search.</summary>
public sealed record BeamSearchOptions
{
    private readonly int _beams = 4;
    private readonly double _lengthPenalty = 1;

    /// <summary>Number of beams, and maximum number of continuations found. Default 4.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int Beams
    {
        get => _beams;
        init => _beams = value > 0 ? value : throw new ArgumentOutOfRangeException(nameof(Beams), value, "Expected at least one beam.");
    }

    /// <summary>
    /// A continuation's score is its log-probability divided by its number of tokens to this power: 0 compares log-probabilities, 1, the
    /// default, their means; larger values prefer longer continuations.
    /// </summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not finite.</exception>
    public double LengthPenalty
    {
        get => _lengthPenalty;
        init => _lengthPenalty = double.IsFinite(value)
            ? value
            : throw new ArgumentOutOfRangeException(nameof(LengthPenalty), value, "Expected a finite number.");
    }

    /// <summary>The score of a continuation.</summary>
    /// <param name="logProbability">Natural logarithm of its probability.</param>
    /// <param name="length">Number of its tokens.</param>
    internal double Score(double logProbability, int length) => logProbability / Math.Pow(length, LengthPenalty);
}
