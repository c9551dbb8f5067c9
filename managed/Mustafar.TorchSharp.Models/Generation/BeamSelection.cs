namespace Mustafar.Models.Generation;

/// <summary>Chooses the beams of each step, and keeps the best finished continuations: a beam search without its model.</summary>
/// <param name="options">How to search.</param>
/// <param name="stopTokens">Tokens that end a continuation.</param>
internal sealed class BeamSelection(BeamSearchOptions options, IReadOnlySet<int> stopTokens)
{
    private readonly List<Hypothesis> _ended = [];
    private readonly LargestNumbers _largest = new();

    /// <summary>The beams that continue, the likeliest first; at first the empty continuation.</summary>
    public IReadOnlyList<Beam> Running { get; private set; } = [Beam.Empty];

    /// <summary>The best finished continuations, the best first.</summary>
    public IReadOnlyList<Hypothesis> Ended => _ended;

    /// <summary>Whether the search has ended.</summary>
    public bool IsDone { get; private set; }

    /// <summary>Takes the scores after <see cref="Running"/> and chooses the beams of the next step.</summary>
    /// <param name="logits">The scores, beams · vocab_size.</param>
    /// <param name="isLast">Whether continuations end at this token, whatever it is.</param>
    /// <exception cref="ArgumentException">A score is NaN, or the maximum of a beam is not finite.</exception>
    public void Advance(ReadOnlySpan<float> logits, bool isLast)
    {
        List<Beam> next = [];
        int rank = 0;
        foreach (Beam candidate in Candidates(logits))
        {
            bool isStopped = stopTokens.Contains(candidate.Token);
            bool isAmongBest = rank++ < options.Beams;
            if (!isStopped && !isLast)
            {
                next.Add(candidate);
            }
            else if (isAmongBest)
            {
                Add(new Hypothesis(
                    candidate.Tokens, candidate.LogProbability, options.Score(candidate.LogProbability, candidate.Length), isStopped));
            }
        }

        Running = next.Count > options.Beams ? next[..options.Beams] : next;
        IsDone = Running.Count == 0 || (_ended.Count == options.Beams && !IsPromising(Running[0]));
    }

    // More than the beams, so that enough remain if the best of them end: among each beam's tokens only stop tokens end one.
    private IEnumerable<Beam> Candidates(ReadOnlySpan<float> logits)
    {
        int vocabSize = logits.Length / Running.Count;
        int count = (int)Math.Min(Array.MaxLength, (1L + Math.Max(1, stopTokens.Count)) * options.Beams);
        List<Beam> candidates = [];
        for (int i = 0; i < Running.Count; i++)
        {
            ReadOnlySpan<float> scores = logits.Slice(i * vocabSize, vocabSize);
            double logSumExp = LogSoftmax.LogSumExp(scores);
            foreach (int token in _largest.Of(scores, count))
            {
                // An impossible token is no continuation.
                if (!float.IsNegativeInfinity(scores[token]))
                {
                    candidates.Add(Running[i].With(i, token, scores[token] - logSumExp));
                }
            }
        }

        // Stable: among equals the one of the likelier beam, then the lower token.
        return candidates.OrderByDescending(candidate => candidate.LogProbability).Take(count);
    }

    // As if a beam could end here: a longer one has a lower log-probability, and can only score better through its length.
    private bool IsPromising(Beam beam) => options.Score(beam.LogProbability, beam.Length) > _ended[^1].Score;

    private void Add(Hypothesis hypothesis)
    {
        int place = _ended.FindIndex(other => other.Score < hypothesis.Score);
        _ended.Insert(place < 0 ? _ended.Count : place, hypothesis);
        if (_ended.Count > options.Beams)
        {
            _ended.RemoveAt(options.Beams);
        }
    }
}
