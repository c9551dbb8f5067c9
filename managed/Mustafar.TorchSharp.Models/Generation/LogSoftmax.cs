namespace Mustafar.Models.Generation;

/// <summary>Logarithms of probabilities, in double precision.</summary>
internal static class LogSoftmax
{
    /// <summary>ln Σ exp(score): a token's score minus this is the logarithm of its probability.</summary>
    /// <param name="logits">A score for each token of the vocabulary.</param>
    /// <exception cref="ArgumentException">There are no scores, one is NaN, or the maximum is not finite.</exception>
    public static double LogSumExp(ReadOnlySpan<float> logits)
    {
        double largest = logits[Likeliest(logits)];
        double sum = 0;
        foreach (float logit in logits)
        {
            sum += Math.Exp(logit - largest);
        }

        return largest + Math.Log(sum);
    }

    /// <summary>The token of the largest score, the lowest id among equals.</summary>
    /// <exception cref="ArgumentException">There are no scores, one is NaN, or the maximum is not finite.</exception>
    private static int Likeliest(ReadOnlySpan<float> logits)
    {
        if (logits.IsEmpty)
        {
            throw new ArgumentException("Expected a score for each token, but got none.", nameof(logits));
        }

        int best = 0;
        for (int i = 0; i < logits.Length; i++)
        {
            if (float.IsNaN(logits[i]))
            {
                throw new ArgumentException($"Expected numbers as scores, but the score of token {i} is NaN.", nameof(logits));
            }

            if (logits[i] > logits[best])
            {
                best = i;
            }
        }

        return float.IsFinite(logits[best])
            ? best
            : throw new ArgumentException($"Expected a finite maximum score, but it is {logits[best]}.", nameof(logits));
    }
}
