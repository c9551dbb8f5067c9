using System.Security.Cryptography;
using System.Text;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Models.Evaluation;

/// <summary>Windows of a long text, each of which begins like a separate text.</summary>
public static class TextWindows
{
    /// <summary>Encodes a text as a whole and cuts it into windows of equal length; a shorter remainder is dropped.</summary>
    /// <param name="tokenizer">The tokenizer.</param>
    /// <param name="text">The text.</param>
    /// <param name="length">Number of tokens in a window, including the tokenizer's prefix.</param>
    /// <returns>The windows; none if the text is shorter than one window.</returns>
    /// <exception cref="ArgumentOutOfRangeException">A window would have no tokens of the text.</exception>
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

    /// <summary>Identifies a text: the SHA-256 of its UTF-8 bytes, in hexadecimal.</summary>
    internal static string HashOf(string text) => Convert.ToHexString(SHA256.HashData(Encoding.UTF8.GetBytes(text)));
}
