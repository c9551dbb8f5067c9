namespace Mustafar.Models.Tokenizer;

/// <summary>Merges neighbouring tokens by byte-pair encoding: always the pair of lowest rank, and the leftmost of several.</summary>
/// <remarks>
/// Takes n log n time for n tokens: tokens are a linked list, possible merges a heap. Microsoft.ML.Tokenizers takes n² for a long word and
/// can't be cancelled. Tokenizers.DotNet, which wraps Hugging Face's library, can't be cancelled either, has no parts of a text in which
/// added tokens are not recognised, and only runs on its author's platforms. The tests compare with it.
/// </remarks>
internal sealed class BytePairMerger
{
    private const int CancellationInterval = 4096;

    // Marks a token that its left neighbour has absorbed.
    private const int Taken = -1;

    private readonly Dictionary<(int Left, int Right), (int Rank, int Id)> _merges;

    /// <summary>Makes a merger.</summary>
    /// <param name="merges">The rank of each pair and the id that it becomes.</param>
    public BytePairMerger(Dictionary<(int Left, int Right), (int Rank, int Id)> merges) => _merges = merges;

    /// <summary>Merges tokens as far as possible.</summary>
    /// <param name="tokens">The tokens to merge; overwritten.</param>
    /// <param name="ids">Receives the result.</param>
    /// <param name="cancellationToken">Stops between merges.</param>
    public void Merge(Span<int> tokens, List<int> ids, CancellationToken cancellationToken)
    {
        if (tokens.Length < 2)
        {
            ids.AddRange(tokens);
            return;
        }

        int[] previous = new int[tokens.Length];
        int[] next = new int[tokens.Length];
        PriorityQueue<Candidate, long> queue = new();
        cancellationToken.ThrowIfCancellationRequested();
        for (int i = 0; i < tokens.Length; i++)
        {
            previous[i] = i - 1;
            next[i] = i + 1;
            if (i + 1 < tokens.Length)
            {
                Offer(queue, tokens, i, i + 1);
            }
        }

        int steps = 0;
        while (queue.TryDequeue(out Candidate candidate, out _))
        {
            if (++steps % CancellationInterval == 0)
            {
                cancellationToken.ThrowIfCancellationRequested();
            }

            // One of the two may have been merged with another neighbour since.
            int left = candidate.Position;
            int right = next[left];
            if (tokens[left] != candidate.Left || right >= tokens.Length || tokens[right] != candidate.Right)
            {
                continue;
            }

            tokens[left] = candidate.Id;
            tokens[right] = Taken;
            next[left] = next[right];
            if (next[left] < tokens.Length)
            {
                previous[next[left]] = left;
                Offer(queue, tokens, left, next[left]);
            }

            if (previous[left] >= 0)
            {
                Offer(queue, tokens, previous[left], left);
            }
        }

        for (int i = 0; i < tokens.Length; i = next[i])
        {
            ids.Add(tokens[i]);
        }
    }

    private void Offer(PriorityQueue<Candidate, long> queue, ReadOnlySpan<int> tokens, int left, int right)
    {
        if (_merges.TryGetValue((tokens[left], tokens[right]), out (int Rank, int Id) merge))
        {
            queue.Enqueue(new Candidate(left, tokens[left], tokens[right], merge.Id), ((long)merge.Rank << 32) | (uint)left);
        }
    }

    private readonly record struct Candidate(int Position, int Left, int Right, int Id);
}
