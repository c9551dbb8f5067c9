using System.Text.RegularExpressions;

namespace Mustafar.Models.Evaluation;

/// <summary>The metrics of LongBench (Bai et al., arXiv 2308.14508) for English and code, each from 0 to 1.</summary>
public static partial class LongBenchMetrics
{
    /// <summary>F1 over the words of an answer, in lower case, without punctuation and articles; repeated words count each time.</summary>
    public static double QaF1(string prediction, string answer)
    {
        string[] predicted = NormalizedWords(prediction), expected = NormalizedWords(answer);
        Dictionary<string, int> left = expected.GroupBy(word => word).ToDictionary(group => group.Key, group => group.Count());
        int same = 0;
        foreach (string word in predicted)
        {
            if (left.TryGetValue(word, out int count) && count > 0)
            {
                left[word] = count - 1;
                same++;
            }
        }

        if (same == 0)
        {
            return 0;
        }

        double precision = (double)same / predicted.Length, recall = (double)same / expected.Length;
        return 2 * precision * recall / (precision + recall);
    }

    /// <summary>ROUGE-L of summaries: <see cref="Evaluation.RougeL"/>.</summary>
    public static double RougeL(string prediction, string answer) => Evaluation.RougeL.F1(prediction, answer);

    /// <summary>1 divided by the number of classes that an answer names if the correct one is among them; otherwise 0.</summary>
    /// <remarks>A class whose name is part of the correct one's is named along with it, and does not count.</remarks>
    /// <param name="prediction">What the model wrote.</param>
    /// <param name="answer">The correct class.</param>
    /// <param name="classes">The names of all classes.</param>
    public static double Classification(string prediction, string answer, IReadOnlyList<string> classes)
    {
        ArgumentNullException.ThrowIfNull(prediction);
        ArgumentNullException.ThrowIfNull(answer);
        ArgumentNullException.ThrowIfNull(classes);
        List<string> named = [.. classes.Where(name => prediction.Contains(name, StringComparison.Ordinal))];

        // The published script removes names from the list that it iterates over, and so skips the one after each. Others compare with its
        // scores, so this does the same.
        for (int i = 0; i < named.Count; i++)
        {
            if (named[i] != answer && answer.Contains(named[i], StringComparison.Ordinal))
            {
                named.Remove(named[i]);
            }
        }

        return named.Contains(answer) ? 1.0 / named.Count : 0;
    }

    /// <summary>Share of the numbers in an answer that are the correct paragraph's.</summary>
    /// <param name="prediction">What the model wrote.</param>
    /// <param name="answer">The correct paragraph, such as "Paragraph 5".</param>
    /// <exception cref="FormatException">The correct answer names no paragraph.</exception>
    public static double Retrieval(string prediction, string answer)
    {
        Match paragraph = Paragraph().Match(answer);
        return paragraph.Success
            ? ShareOfNumbers(prediction, paragraph.Groups[1].Value)
            : throw new FormatException($"Expected an answer such as 'Paragraph 5', but got '{answer}'.");
    }

    /// <summary>Share of the numbers in an answer that are the correct one.</summary>
    public static double Count(string prediction, string answer) => ShareOfNumbers(prediction, answer);

    /// <summary>Similarity of the first line of an answer that is neither a comment nor a code fence, rounded to whole per cent.</summary>
    /// <remarks>
    /// Twice the length of the longest common subsequence divided by the sum of both lengths: the ratio of the Levenshtein library, which
    /// the published script uses where it is installed.
    /// </remarks>
    public static double CodeSimilarity(string prediction, string answer)
    {
        ArgumentNullException.ThrowIfNull(prediction);
        ArgumentNullException.ThrowIfNull(answer);
        string line = prediction.TrimStart('\n').Split('\n').FirstOrDefault(
            text => !text.Contains('`', StringComparison.Ordinal)
                && !text.Contains('#', StringComparison.Ordinal)
                && !text.Contains("//", StringComparison.Ordinal), "");
        if (line == answer)
        {
            return 1;
        }

        if (line.Length == 0 || answer.Length == 0)
        {
            return 0;
        }

        // Unicode characters, not UTF-16 code units.
        int[] a = [.. line.EnumerateRunes().Select(rune => rune.Value)], b = [.. answer.EnumerateRunes().Select(rune => rune.Value)];
        int common = LongestCommonSubsequence.Table<int>(a, b)[a.Length, b.Length];
        return Math.Round(200.0 * common / (a.Length + b.Length), MidpointRounding.ToEven) / 100;
    }

    private static double ShareOfNumbers(string prediction, string expected)
    {
        ArgumentNullException.ThrowIfNull(prediction);
        MatchCollection numbers = Number().Matches(prediction);
        return numbers.Count == 0 ? 0 : (double)numbers.Count(number => number.Value == expected) / numbers.Count;
    }

    // Python's string.punctuation is the ASCII characters that are neither letters, digits, white space nor control characters.
    private static string[] NormalizedWords(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        string letters = string.Concat(text.ToLowerInvariant().Where(
            c => !(char.IsAscii(c) && (char.IsPunctuation(c) || char.IsSymbol(c)))));
        return Article().Replace(letters, " ").Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);
    }

    [GeneratedRegex(@"\b(a|an|the)\b", RegexOptions.CultureInvariant)]
    private static partial Regex Article();

    [GeneratedRegex(@"\d+", RegexOptions.CultureInvariant)]
    private static partial Regex Number();

    [GeneratedRegex(@"Paragraph (\d+)", RegexOptions.CultureInvariant)]
    private static partial Regex Paragraph();
}
