namespace Mustafar;

/// <summary>The part of a file that the layers of one store have in common; the file describes each layer separately.</summary>
/// <param name="Tables">The sequences, with the pages of the layer that released the fewest, which the others have too.</param>
/// <param name="Numbers">For each layer, which of those pages are its own.</param>
internal sealed record CommonTables(CacheTables Tables, IReadOnlyList<int[]> Numbers)
{
    /// <summary>Number of pages.</summary>
    internal int Pages => Tables.PageIndices.Length == 0 ? 0 : Tables.PageIndices.Max() + 1;

    /// <summary>Finds what layers have in common.</summary>
    /// <param name="layers">Tables of each layer, already checked separately.</param>
    /// <param name="groupSize">Tokens of a page.</param>
    /// <param name="problem">Why they can't share pages, if the result is null.</param>
    internal static CommonTables? Of(IReadOnlyList<CacheTables> layers, int groupSize, out string? problem)
    {
        CacheTables common = layers.MinBy(layer => layer.Released.Sum(released => (long)released))!;
        List<int[]> numbers = [];
        for (int i = 0; i < layers.Count; i++)
        {
            if (Numbered(layers[i], common, groupSize) is not int[] own)
            {
                problem = $"expected layers with the same compressed tokens and shared pages, but layer {i} differs from another.";
                return null;
            }

            numbers.Add(own);
        }

        problem = null;
        return new CommonTables(common, numbers);
    }

    // The common number of each of a layer's pages; null if they don't correspond one to one.
    private static int[]? Numbered(CacheTables layer, CacheTables common, int groupSize)
    {
        if (!layer.Lengths.SequenceEqual(common.Lengths) || !layer.Compressed.SequenceEqual(common.Compressed)
            || !layer.Sinks.SequenceEqual(common.Sinks))
        {
            return null;
        }

        Dictionary<int, int> commonOf = [], ownOf = [];
        int next = 0, nextCommon = 0;
        for (int b = 0; b < layer.Lengths.Length; b++)
        {
            int more = layer.Released[b] - common.Released[b];
            if (more < 0)
            {
                return null;
            }

            nextCommon += more;
            for (int left = layer.PagesOf(b, groupSize); left > 0; left--)
            {
                (int own, int number) = (layer.PageIndices[next++], common.PageIndices[nextCommon++]);
                if ((commonOf.TryAdd(own, number) ? number : commonOf[own]) != number || (ownOf.TryAdd(number, own) ? own : ownOf[number]) != own)
                {
                    return null;
                }
            }
        }

        return [.. commonOf.OrderBy(page => page.Key).Select(page => page.Value)];
    }
}
