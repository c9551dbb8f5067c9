namespace Mustafar.Models.Evaluation;

/// <summary>Random names and numbers that no text contains, the same on every machine.</summary>
internal static class Words
{
    private const string Consonants = "bdfgklmnprstvz";
    private const string Vowels = "aeiou";
    private const int Syllables = 3;

    /// <summary>The random number generator of a sample.</summary>
    public static Random RandomOf(int seed, int sample) => new(unchecked((seed * 1_000_003) + sample));

    /// <summary>A pronounceable name, such as Rodaki.</summary>
    public static string Name(Random random)
    {
        string name = string.Concat(Enumerable.Range(0, Syllables).Select(_ => $"{Letter(Consonants)}{Letter(Vowels)}"));
        return char.ToUpperInvariant(name[0]) + name[1..];

        char Letter(string letters) => letters[random.Next(letters.Length)];
    }

    /// <summary>Distinct names.</summary>
    public static string[] Names(Random random, int count) => Different(() => Name(random), count);

    /// <summary>Distinct numbers with the given number of digits, the first of which is not 0.</summary>
    public static string[] Numbers(Random random, int digits, int count) => Different(
        () => $"{(char)('1' + random.Next(9))}{new string(random.GetItems<char>("0123456789", digits - 1))}", count);

    private static string[] Different(Func<string> make, int count)
    {
        List<string> words = [];
        while (words.Count < count)
        {
            string word = make();
            if (!words.Contains(word))
            {
                words.Add(word);
            }
        }

        return [.. words];
    }
}
