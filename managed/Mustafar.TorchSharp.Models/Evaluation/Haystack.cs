using Mustafar.Models.Tokenizer;

namespace Mustafar.Models.Evaluation;

/// <summary>Long texts that hide a few lines.</summary>
internal static class Haystack
{
    /// <summary>Inserts lines into a random part of a text.</summary>
    /// <param name="tokenizer">The tokenizer.</param>
    /// <param name="text">Token ids of the text.</param>
    /// <param name="length">Number of token ids in the result, including the tokenizer's prefix.</param>
    /// <param name="lines">Token ids of each line, including its line end, in the order in which the lines appear.</param>
    /// <param name="random">Chooses the part.</param>
    /// <param name="choosePlaces">Gets all positions after a line end and the length of the part, and chooses a position for each
    /// line.</param>
    /// <exception cref="ArgumentException">There is no room for text next to the lines, or the text is shorter or has no line
    /// ends.</exception>
    public static List<int> Hide(
        TextTokenizer tokenizer,
        IReadOnlyList<int> text,
        int length,
        IReadOnlyList<IReadOnlyList<int>> lines,
        Random random,
        Func<int[], int, IEnumerable<int>> choosePlaces)
    {
        int textLength = length - tokenizer.Prefix.Count - lines.Sum(line => line.Count);
        if (textLength < 1)
        {
            throw new ArgumentException(
                $"Expected room for text beside {length - textLength} tokens of what is hidden, but the context has {length}.", nameof(length));
        }

        if (text.Count < textLength)
        {
            throw new ArgumentException(
                $"Expected a text of at least {textLength} tokens for a context of {length}, but it has {text.Count}.", nameof(text));
        }

        int start = random.Next(text.Count - textLength + 1);
        int[] part = [.. text.Skip(start).Take(textLength)];
        int[] lineEnds = [.. Enumerable.Range(0, textLength).Where(i => tokenizer.BytesOf(part[i]) is [.., (byte)'\n']).Select(i => i + 1)];
        if (lineEnds.Length == 0)
        {
            throw new ArgumentException("Expected a text with ends of lines, where something can be hidden, but a part has none.", nameof(text));
        }

        List<int> context = [.. tokenizer.Prefix];
        int done = 0;
        foreach ((int place, IReadOnlyList<int> line) in choosePlaces(lineEnds, textLength).Order().Zip(lines))
        {
            context.AddRange(part[done..place]);
            context.AddRange(line);
            done = place;
        }

        context.AddRange(part[done..]);
        return context;
    }

    /// <summary>The line end nearest to a relative depth in a text.</summary>
    public static int Nearest(int[] lineEnds, int length, double depth) => lineEnds.MinBy(end => Math.Abs(end - (depth * length)));
}
