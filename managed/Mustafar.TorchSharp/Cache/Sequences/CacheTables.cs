namespace Mustafar;

/// <summary>The state of a cache's sequences, apart from keys and values.</summary>
/// <param name="Lengths">Tokens of each sequence, not counting sinks.</param>
/// <param name="Compressed">How many of them are in pages, or were in pages that the sliding window released.</param>
/// <param name="Released">Number of pages that each sequence has released from its front.</param>
/// <param name="Sinks">Number of sinks of each sequence.</param>
/// <param name="PageIndices">The pages of the first sequence, then those of the second and so on. Pages are numbered in the order of their
/// first occurrence; sequences that share a page have it at the same place.</param>
internal sealed record CacheTables(int[] Lengths, int[] Compressed, int[] Released, int[] Sinks, int[] PageIndices)
{
    /// <summary>Tokens of each sequence, including sinks.</summary>
    internal int[] TotalLengths => [.. Lengths.Zip(Sinks, (length, sinks) => length + sinks)];

    /// <summary>Number of pages of a sequence.</summary>
    internal int PagesOf(int sequence, int groupSize) => (Compressed[sequence] / groupSize) - Released[sequence];

    /// <summary>The tables of sequences in a store, and their pages in the order of the tables' numbers.</summary>
    internal static (CacheTables Tables, int[] Pages) Of(CompressedStore store, int[] slots)
    {
        Sequence[] sequences = [.. slots.Select(slot => store.Table[slot])];
        Dictionary<int, int> numbers = [];
        List<int> indices = [];
        foreach (int page in sequences.SelectMany(sequence => sequence.Pages))
        {
            numbers.TryAdd(page, numbers.Count);
            indices.Add(numbers[page]);
        }

        CacheTables tables = new(
            [.. sequences.Select(sequence => sequence.Length)],
            [.. sequences.Select(sequence => sequence.Compressed)],
            [.. sequences.Select(sequence => sequence.Released)],
            [.. sequences.Select(sequence => sequence.Sinks)],
            [.. indices]);
        return (tables, [.. numbers.Keys]);
    }

    /// <summary>Puts the sequences in slots of a store whose pages and windows are filled.</summary>
    /// <param name="store">The store.</param>
    /// <param name="slots">Their slots.</param>
    /// <param name="pages">The pages, in the order of the tables' numbers.</param>
    internal void Restore(CompressedStore store, int[] slots, int[] pages)
    {
        bool[] taken = new bool[pages.Length];
        int next = 0;
        for (int b = 0; b < slots.Length; b++)
        {
            Sequence sequence = new()
            {
                Length = Lengths[b],
                Compressed = Compressed[b],
                Sinks = Sinks[b],
                Position = Lengths[b] + Sinks[b],
                Released = Released[b],
            };
            for (int left = PagesOf(b, store.Table.Rules.GroupSize); left > 0; left--, next++)
            {
                int number = PageIndices[next];
                if (taken[number])
                {
                    store.Table.Pool.Share(pages[number]);
                }

                taken[number] = true;
                sequence.Pages.Add(pages[number]);
            }

            store.Table.Restore(slots[b], sequence);
        }
    }

    /// <summary>Describes what is wrong with the tables, if they don't belong to a layer with given options.</summary>
    /// <param name="options">The options.</param>
    /// <param name="rules">The rules of compression.</param>
    /// <param name="pages">Number of pages.</param>
    /// <returns>What was expected and what came, or null.</returns>
    internal string? Problem(MustafarOptions options, SequenceRules rules, long pages)
    {
        int mostTokens = rules.MostTokens;
        for (int b = 0; b < Lengths.Length; b++)
        {
            (int length, int compressed, int released, int sinks) = (Lengths[b], Compressed[b], Released[b], Sinks[b]);
            if (length < 0 || length > mostTokens)
            {
                return $"expected 0 to {mostTokens} tokens of sequence {b}, but got {length}.";
            }

            if (sinks < 0 || sinks > options.SinkTokens || (length > 0 && sinks != options.SinkTokens))
            {
                return $"expected {options.SinkTokens} sinks before all other tokens of sequence {b}, but got {sinks} before {length}.";
            }

            // Tokens that the next query can't see.
            long unseen = length == 0 || options.SlidingWindow is not int window ? 0 : Math.Max(0, length + 1L - window);
            if (released < 0 || released > unseen / options.GroupSize)
            {
                return $"expected 0 to {unseen / options.GroupSize} released pages of sequence {b}, but got {released}.";
            }

            // A group that becomes compressible with the next token may be compressed; a group of which the window released a page stays
            // compressed.
            int least = rules.Due(length);
            int most = Math.Max(rules.Due(length, lookahead: 1), released * options.GroupSize);
            if (compressed < least || compressed > most || compressed % options.GroupSize != 0 || compressed / options.GroupSize < released)
            {
                return $"expected {least} to {most} compressed tokens of sequence {b} of {length}, in groups of {options.GroupSize}, of which {released} were released, but got {compressed}.";
            }
        }

        return ProblemOfPages(options.GroupSize, pages);
    }

    private string? ProblemOfPages(int groupSize, long pages)
    {
        long expected = Enumerable.Range(0, Lengths.Length).Sum(b => (long)PagesOf(b, groupSize));
        if (PageIndices.Length != expected)
        {
            return $"expected {expected} page indices for the compressed tokens, but got {PageIndices.Length}.";
        }

        List<int> places = [];
        int next = 0;
        for (int b = 0; b < Lengths.Length; b++)
        {
            int last = Compressed[b] / groupSize;
            for (int place = Released[b]; place < last; place++, next++)
            {
                int page = PageIndices[next];
                if (page < 0 || page > places.Count || page >= pages)
                {
                    return $"expected a page of 0 to {Math.Min(places.Count, pages - 1)} at place {place} of sequence {b}, but got {page}.";
                }

                if (page == places.Count)
                {
                    places.Add(place);
                }
                else if (places[page] != place)
                {
                    return $"expected page {page} at place {places[page]} only, but it is at place {place} of sequence {b}.";
                }
            }
        }

        return places.Count == pages ? null : $"expected {places.Count} pages, the number that sequences use, but got {pages}.";
    }
}
