namespace Mustafar.Tests.Llama;

/// <summary>Searches for likely continuations as textbooks have them: no caches, and every candidate is looked at.</summary>
/// <param name="logProbabilities">Log-probabilities of the token after a continuation.</param>
/// <param name="lengthPenalty">Power of the length in a score.</param>
/// <param name="maxTokens">Tokens of a continuation at most.</param>
/// <param name="stops">Tokens that end one.</param>
internal sealed class ReferenceSearch(
    Func<int[], double[]> logProbabilities, double lengthPenalty, int maxTokens, IReadOnlySet<int> stops)
{
    /// <summary>A continuation, and the sum of its tokens' log-probabilities.</summary>
    public sealed record Found(int[] Tokens, double Sum, double Score);

    /// <summary>All continuations that end with a stop token or have all tokens, the best first.</summary>
    public List<Found> Exhaustive()
    {
        List<Found> ended = [];
        Extend([], 0);
        return [.. ended.OrderByDescending(found => found.Score)];

        void Extend(int[] tokens, double sum)
        {
            foreach (Found next in Next(tokens, sum))
            {
                if (IsEnd(next))
                {
                    ended.Add(next);
                }
                else
                {
                    Extend(next.Tokens, next.Sum);
                }
            }
        }
    }

    /// <summary>Beam search with the early stop of transformers' <c>early_stopping=False</c>.</summary>
    public List<Found> Beams(int beams)
    {
        List<Found> ended = [];
        List<Found> live = [new([], 0, 0)];
        while (live.Count > 0)
        {
            List<Found> ranked = [.. live.SelectMany(beam => Next(beam.Tokens, beam.Sum)).OrderByDescending(found => found.Sum)];
            ended = [.. ended.Concat(ranked.Take(beams).Where(IsEnd)).OrderByDescending(found => found.Score).Take(beams)];
            live = [.. ranked.Where(found => !IsEnd(found)).Take(beams)];
            if (ended.Count == beams && live.Count > 0 && live[0].Score <= ended[^1].Score)
            {
                break;
            }
        }

        return ended;
    }

    private IEnumerable<Found> Next(int[] tokens, double sum) => logProbabilities(tokens).Select((value, token) =>
        new Found([.. tokens, token], sum + value, (sum + value) / Math.Pow(tokens.Length + 1, lengthPenalty)));

    private bool IsEnd(Found found) => found.Tokens.Length == maxTokens || stops.Contains(found.Tokens[^1]);
}
