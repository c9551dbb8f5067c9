namespace Mustafar.Models.Evaluation;

/// <summary>ROUGE-L of summaries (Lin, 2004), as computed by the Python package <c>rouge</c>, which LongBench uses.</summary>
internal static class RougeL
{
    // The package adds this to the denominator, which would be 0 if nothing matched.
    private const double Epsilon = 1e-8;

    /// <summary>
    /// F1 over distinct words. The common words are those in the longest common subsequences of each reference sentence with each summary
    /// sentence; precision is their share of the summary's words, recall their share of the reference's. A sentence ends with a full stop.
    /// </summary>
    public static double F1(string summary, string reference)
    {
        ArgumentNullException.ThrowIfNull(summary);
        ArgumentNullException.ThrowIfNull(reference);
        string[][] written = Sentences(summary), expected = Sentences(reference);
        if (written.Length == 0 || expected.Length == 0)
        {
            return 0;
        }

        HashSet<string> common = [];
        foreach (string[] sentence in expected)
        {
            foreach (string[] other in written)
            {
                AddCommon(sentence, other, common);
            }
        }

        double precision = (double)common.Count / written.SelectMany(words => words).Distinct().Count();
        double recall = (double)common.Count / expected.SelectMany(words => words).Distinct().Count();
        return 2 * precision * recall / (precision + recall + Epsilon);
    }

    // Nothing between two full stops is not a sentence; white space alone is a sentence of one empty word.
    private static string[][] Sentences(string text) =>
    [
        .. text.Split('.').Where(sentence => sentence.Length > 0)
            .Select(sentence => sentence.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries) is { Length: > 0 } words ? words : [""]),
    ];

    // Adds the words of one longest common subsequence. If there are several, it is the one found by walking back from the ends, stepping
    // back in the first sentence only where that keeps more.
    private static void AddCommon(string[] a, string[] b, HashSet<string> common)
    {
        int[,] table = LongestCommonSubsequence.Table<string>(a, b);
        for ((int i, int j) = (a.Length, b.Length); i > 0 && j > 0;)
        {
            if (a[i - 1] == b[j - 1])
            {
                common.Add(a[i - 1]);
                (i, j) = (i - 1, j - 1);
            }
            else if (table[i - 1, j] > table[i, j - 1])
            {
                i--;
            }
            else
            {
                j--;
            }
        }
    }
}
