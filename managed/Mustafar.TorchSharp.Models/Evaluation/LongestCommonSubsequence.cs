namespace Mustafar.Models.Evaluation;

/// <summary>Lengths of longest common subsequences.</summary>
internal static class LongestCommonSubsequence
{
    /// <summary>A table with, at [i, j], the length for the first i items of one sequence and the first j of the other.</summary>
    public static int[,] Table<T>(IReadOnlyList<T> a, IReadOnlyList<T> b)
        where T : IEquatable<T>
    {
        int[,] table = new int[a.Count + 1, b.Count + 1];
        for (int i = 1; i <= a.Count; i++)
        {
            for (int j = 1; j <= b.Count; j++)
            {
                table[i, j] = a[i - 1].Equals(b[j - 1]) ? table[i - 1, j - 1] + 1 : Math.Max(table[i - 1, j], table[i, j - 1]);
            }
        }

        return table;
    }
}
