namespace Mustafar.Models.Evaluation;

/// <summary>What a recommended cache setting has to keep to: a number of bytes, or a quality.</summary>
public sealed record RecommendationBudget
{
    private RecommendationBudget(double? bytes, double? perplexity) => (Bytes, Perplexity) = (bytes, perplexity);

    /// <summary>Bytes of compressed tokens at most, relative to dense fp16; null if the budget is a quality.</summary>
    public double? Bytes { get; }

    /// <summary>Perplexity at most, relative to that of the dense cache; null if the budget is a number of bytes.</summary>
    public double? Perplexity { get; }

    /// <summary>The setting that costs the least quality within so many bytes.</summary>
    /// <param name="ratio">Bytes of compressed tokens relative to dense fp16, such as 0.375. The recent window, whose part of a cache
    /// depends on its length, does not count.</param>
    /// <exception cref="ArgumentOutOfRangeException">The ratio is not above 0.</exception>
    public static RecommendationBudget OfBytes(double ratio) => ratio > 0 && double.IsFinite(ratio)
        ? new RecommendationBudget(ratio, null)
        : throw new ArgumentOutOfRangeException(nameof(ratio), ratio, "Expected bytes relative to dense fp16, above 0.");

    /// <summary>The setting of the fewest bytes that raises perplexity no further.</summary>
    /// <param name="ratio">Perplexity relative to that of the dense cache, such as 1.01.</param>
    /// <exception cref="ArgumentOutOfRangeException">The ratio is not above 1.</exception>
    public static RecommendationBudget OfPerplexity(double ratio) => ratio > 1 && double.IsFinite(ratio)
        ? new RecommendationBudget(null, ratio)
        : throw new ArgumentOutOfRangeException(nameof(ratio), ratio, "Expected a perplexity relative to that of the dense cache, above 1.");
}
