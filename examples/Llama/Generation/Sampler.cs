namespace Mustafar.Examples.Llama.Generation;

/// <summary>Chooses tokens from scores: temperature first, then top-k, then top-p of what is left.</summary>
public sealed class Sampler
{
    private readonly SamplingOptions _options;
    private readonly Random _random;

    /// <summary>Makes a sampler.</summary>
    /// <param name="options">How to choose.</param>
    public Sampler(SamplingOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        _options = options;
        _random = new Random(options.Seed);
    }

    /// <summary>Chooses the next token.</summary>
    /// <param name="logits">A score for each token of the vocabulary.</param>
    /// <returns>Its id.</returns>
    /// <exception cref="ArgumentException">There are no scores, one is NaN, or the largest is not finite.</exception>
    public int Next(ReadOnlySpan<float> logits)
    {
        if (_options.Temperature == 0)
        {
            return Likeliest(logits);
        }

        List<(int Id, double Probability)> candidates = Candidates(logits);
        double rest = _random.NextDouble() * candidates.Sum(candidate => candidate.Probability);
        foreach ((int id, double probability) in candidates)
        {
            rest -= probability;
            if (rest < 0)
            {
                return id;
            }
        }

        // Rounding can leave a crumb.
        return candidates[^1].Id;
    }

    /// <summary>The tokens that may be drawn at a temperature above 0, with their probabilities before top-k and top-p.</summary>
    /// <param name="logits">A score for each token of the vocabulary.</param>
    /// <returns>All tokens in order of id without top-k and top-p, else the likeliest first, the lower id first among equals.</returns>
    /// <exception cref="ArgumentException">There are no scores, one is NaN, or the largest is not finite.</exception>
    internal List<(int Id, double Probability)> Candidates(ReadOnlySpan<float> logits)
    {
        float largest = logits[Likeliest(logits)];
        double[] probabilities = new double[logits.Length];
        double sum = 0;
        for (int i = 0; i < probabilities.Length; i++)
        {
            probabilities[i] = Math.Exp((logits[i] - largest) / _options.Temperature);
            sum += probabilities[i];
        }

        for (int i = 0; i < probabilities.Length; i++)
        {
            probabilities[i] /= sum;
        }

        bool limited = _options.TopK > 0 && _options.TopK < probabilities.Length;
        List<(int Id, double Probability)> candidates;
        if (limited)
        {
            candidates = Largest(probabilities, _options.TopK);
        }
        else if (_options.TopP < 1)
        {
            // Tokens below this are too few in sum to be among those that reach the mass, so they need no sorting.
            double negligible = (1 - _options.TopP) / probabilities.Length;
            candidates = [.. probabilities.Select((probability, id) => (id, probability)).Where(item => item.probability >= negligible)];
        }
        else
        {
            return [.. probabilities.Select((probability, id) => (id, probability))];
        }

        candidates.Sort((a, b) => a.Probability != b.Probability ? b.Probability.CompareTo(a.Probability) : a.Id.CompareTo(b.Id));
        return _options.TopP < 1 ? Nucleus(candidates, _options.TopP * (limited ? candidates.Sum(item => item.Probability) : 1)) : candidates;
    }

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
                throw new ArgumentException($"Expected numbers as scores, but that of token {i} is NaN.", nameof(logits));
            }

            if (logits[i] > logits[best])
            {
                best = i;
            }
        }

        return float.IsFinite(logits[best])
            ? best
            : throw new ArgumentException($"Expected a finite largest score, but it is {logits[best]}.", nameof(logits));
    }

    private static List<(int Id, double Probability)> Largest(double[] probabilities, int count)
    {
        // The smallest of the chosen is on top of the queue; among equals the highest id is.
        PriorityQueue<int, (double Probability, int Order)> chosen = new(count + 1);
        for (int i = 0; i < probabilities.Length; i++)
        {
            if (chosen.Count < count)
            {
                chosen.Enqueue(i, (probabilities[i], -i));
            }
            else if (probabilities[i] > probabilities[chosen.Peek()])
            {
                chosen.DequeueEnqueue(i, (probabilities[i], -i));
            }
        }

        return [.. chosen.UnorderedItems.Select(item => (item.Element, item.Priority.Probability))];
    }

    private static List<(int Id, double Probability)> Nucleus(List<(int Id, double Probability)> sorted, double mass)
    {
        double sum = 0;
        int count = 0;
        while (count < sorted.Count && sum < mass)
        {
            sum += sorted[count++].Probability;
        }

        return sorted[..Math.Max(count, 1)];
    }
}
