namespace Mustafar.Examples.Llama.Generation;

/// <summary>Chooses tokens from scores: penalties first, then temperature, then top-k, then top-p of what is left.</summary>
/// <remarks>Penalties count what this object has chosen, so it is used for one text.</remarks>
public sealed class Sampler
{
    private readonly SamplingOptions _options;
    private readonly Random _random;

    // Kept from call to call: for a large vocabulary they would be large objects, which cost a full collection each.
    private readonly List<(int Id, double Probability)> _candidates = [];
    private readonly LargestNumbers _largest = new();
    private readonly Dictionary<int, int> _chosen = [];
    private double[] _probabilities = [];
    private float[] _penalised = [];

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
        if (_options is { FrequencyPenalty: 0, PresencePenalty: 0 })
        {
            return Choose(logits);
        }

        int token = Choose(Penalised(logits));
        _chosen[token] = _chosen.GetValueOrDefault(token) + 1;
        return token;
    }

    private ReadOnlySpan<float> Penalised(ReadOnlySpan<float> logits)
    {
        if (_penalised.Length < logits.Length)
        {
            _penalised = new float[logits.Length];
        }

        logits.CopyTo(_penalised);
        foreach ((int token, int count) in _chosen)
        {
            _penalised[token] -= (float)((_options.FrequencyPenalty * count) + _options.PresencePenalty);
        }

        return _penalised.AsSpan(0, logits.Length);
    }

    private int Choose(ReadOnlySpan<float> logits)
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
    /// <returns>All tokens in order of id without top-k and top-p, else the likeliest first, the lower id first among equals. The list
    /// is overwritten by the next call.</returns>
    /// <exception cref="ArgumentException">There are no scores, one is NaN, or the largest is not finite.</exception>
    internal List<(int Id, double Probability)> Candidates(ReadOnlySpan<float> logits)
    {
        Span<double> probabilities = Probabilities(logits);
        _candidates.Clear();
        bool limited = _options.TopK > 0 && _options.TopK < probabilities.Length;
        if (limited)
        {
            foreach (int id in _largest.Of<double>(probabilities, _options.TopK))
            {
                _candidates.Add((id, probabilities[id]));
            }
        }
        else
        {
            // For top-p, tokens below this are too few in sum to be among those that reach the mass, so they need no sorting.
            double negligible = (1 - _options.TopP) / probabilities.Length;
            for (int i = 0; i < probabilities.Length; i++)
            {
                if (probabilities[i] >= negligible)
                {
                    _candidates.Add((i, probabilities[i]));
                }
            }

            if (_options.TopP == 1)
            {
                return _candidates;
            }

            _candidates.Sort((a, b) => a.Probability != b.Probability ? b.Probability.CompareTo(a.Probability) : a.Id.CompareTo(b.Id));
        }

        if (_options.TopP < 1)
        {
            KeepNucleus(_options.TopP * (limited ? _candidates.Sum(item => item.Probability) : 1));
        }

        return _candidates;
    }

    private Span<double> Probabilities(ReadOnlySpan<float> logits)
    {
        float largest = logits[Likeliest(logits)];
        if (_probabilities.Length < logits.Length)
        {
            _probabilities = new double[logits.Length];
        }

        Span<double> probabilities = _probabilities.AsSpan(0, logits.Length);
        double sum = 0;
        for (int i = 0; i < probabilities.Length; i++)
        {
            probabilities[i] = Math.Exp((logits[i] - largest) / _options.Temperature);
            sum += probabilities[i];
        }

        foreach (ref double probability in probabilities)
        {
            probability /= sum;
        }

        return probabilities;
    }

    /// <summary>The token of the largest score, the lowest id among equals.</summary>
    /// <exception cref="ArgumentException">There are no scores, one is NaN, or the largest is not finite.</exception>
    internal static int Likeliest(ReadOnlySpan<float> logits)
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

    // Leaves the first of the sorted candidates that together have the mass, at least one.
    private void KeepNucleus(double mass)
    {
        double sum = 0;
        int count = 0;
        while (count < _candidates.Count && sum < mass)
        {
            sum += _candidates[count++].Probability;
        }

        count = Math.Max(count, 1);
        _candidates.RemoveRange(count, _candidates.Count - count);
    }
}
