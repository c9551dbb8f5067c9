using System.Security.Cryptography;
using System.Text;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Models.Evaluation;

/// <summary>Windows of a long text, each of which begins like a text of its own.</summary>
public static class TextWindows
{
    /// <summary>Cuts a text, which is encoded as a whole, into windows of equal length; a shorter rest is left out.</summary>
    /// <param name="tokenizer">The tokenizer.</param>
    /// <param name="text">The text.</param>
    /// <param name="length">Tokens of a window, those that stand in front of a text included.</param>
    /// <returns>The windows; none if the text is shorter than one.</returns>
    /// <exception cref="ArgumentOutOfRangeException">A window would have no token of the text.</exception>
    public static List<List<int>> Of(TextTokenizer tokenizer, string text, int length)
    {
        ArgumentNullException.ThrowIfNull(tokenizer);
        ArgumentNullException.ThrowIfNull(text);
        IReadOnlyList<int> prefix = tokenizer.Prefix;
        ArgumentOutOfRangeException.ThrowIfLessThanOrEqual(length, prefix.Count);
        List<int> all = tokenizer.Encode(text);
        List<List<int>> windows = [];
        for (int i = 0; (i + 1) * (long)length <= all.Count; i++)
        {
            windows.Add([.. prefix, .. all.GetRange((i * length) + prefix.Count, length - prefix.Count)]);
        }

        return windows;
    }

    /// <summary>Tells texts apart: the SHA-256 of a text in UTF-8, in hexadecimal.</summary>
    internal static string HashOf(string text) => Convert.ToHexString(SHA256.HashData(Encoding.UTF8.GetBytes(text)));
}
