namespace Mustafar.Models.Evaluation;

/// <summary>The budget of a recommended cache setting: a number of bytes, or a quality.</summary>
public sealed record RecommendationBudget
{
    private RecommendationBudget(double? bytes, double? perplexity) => (Bytes, Perplexity) = (bytes, perplexity);

    /// <summary>Maximum bytes of compressed tokens, relative to dense fp16; null if the budget is a quality.</summary>
    public double? Bytes { get; }

    /// <summary>Maximum perplexity, relative to that of the dense cache; null if the budget is a number of bytes.</summary>
    public double? Perplexity { get; }

    /// <summary>Asks for the setting that loses the least quality within a number of bytes.</summary>
    /// <param name="ratio">Bytes of compressed tokens relative to dense fp16, such as 0.375. The recent window does not count, since its
    /// share of a cache depends on the cache's length.</param>
    /// <exception cref="ArgumentOutOfRangeException">The ratio is not above 0.</exception>
    public static RecommendationBudget OfBytes(double ratio) => ratio > 0 && double.IsFinite(ratio)
        ? new RecommendationBudget(ratio, null)
        : throw new ArgumentOutOfRangeException(nameof(ratio), ratio, "Expected bytes relative to dense fp16, above 0.");

    /// <summary>Asks for the setting with the fewest bytes that raises perplexity no further than this.</summary>
    /// <param name="ratio">Perplexity relative to that of the dense cache, such as 1.01.</param>
    /// <exception cref="ArgumentOutOfRangeException">The ratio is not above 1.</exception>
    public static RecommendationBudget OfPerplexity(double ratio) => ratio > 1 && double.IsFinite(ratio)
        ? new RecommendationBudget(null, ratio)
        : throw new ArgumentOutOfRangeException(nameof(ratio), ratio, "Expected a perplexity relative to that of the dense cache, above 1.");
}
