namespace Mustafar.Examples.Llama.Generation;

/// <summary>Logarithms of probabilities, in double precision.</summary>
internal static class LogSoftmax
{
    /// <summary>ln Σ exp(score): a token's score less this is the logarithm of its probability.</summary>
    /// <param name="logits">A score for each token of the vocabulary.</param>
    /// <exception cref="ArgumentException">There are no scores, one is NaN, or the largest is not finite.</exception>
    public static double LogSumExp(ReadOnlySpan<float> logits)
    {
        double largest = logits[Sampler.Likeliest(logits)];
        double sum = 0;
        foreach (float logit in logits)
        {
            sum += Math.Exp(logit - largest);
        }

        return largest + Math.Log(sum);
    }
}
