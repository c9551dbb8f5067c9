using System.Buffers;
using System.Text;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Strings as Python counts them: by code points, not by UTF-16 units.</summary>
internal static class PythonString
{
    private static readonly SearchValues<char> s_lineEnds = SearchValues.Create("\n\r\v\f\u001c\u001d\u001e\u0085\u2028\u2029");

    /// <summary>What <c>str.isspace</c> and <c>strip</c> take for white space.</summary>
    public static char[] Spaces { get; } = [.. Enumerable.Range(0, 0x3001).Select(code => (char)code).Where(IsSpace)];

    /// <summary>Whether Python takes a character for white space.</summary>
    public static bool IsSpace(char c) => char.IsWhiteSpace(c) || c is >= '\x1c' and <= '\x1f';

    /// <summary>Number of code points.</summary>
    public static int Length(string text) => IsBasic(text) ? text.Length : text.EnumerateRunes().Count();

    /// <summary>Its characters, each a string.</summary>
    public static IEnumerable<string> Characters(string text)
    {
        for (int i = 0; i < text.Length;)
        {
            int length = char.IsSurrogatePair(text, i) ? 2 : 1;
            yield return text.Substring(i, length);
            i += length;
        }
    }

    /// <summary>The place in UTF-16 of a code point, which may be one behind the last.</summary>
    public static int ToUnits(string text, int index)
    {
        if (IsBasic(text))
        {
            return index;
        }

        int at = 0;
        for (; index > 0; index--)
        {
            at += char.IsSurrogatePair(text, at) ? 2 : 1;
        }

        return at;
    }

    /// <summary>The code point at a place in UTF-16.</summary>
    public static int FromUnits(string text, int at) => at < 0 || IsBasic(text) ? at : Length(text[..at]);

    /// <summary>Compares by code points, as Python orders strings.</summary>
    public static int Compare(string a, string b)
    {
        int common = a.AsSpan().CommonPrefixLength(b);
        if (common == a.Length || common == b.Length)
        {
            return a.Length - b.Length;
        }

        // In UTF-16 surrogates stand below U+E000 to U+FFFF, but the characters that they make up above.
        (char x, char y) = (a[common], b[common]);
        return char.IsSurrogate(x) == char.IsSurrogate(y) ? x - y : char.IsSurrogate(x) ? 1 : -1;
    }

    /// <summary><c>str.title</c>: each first letter of a word in upper case, all else in lower case.</summary>
    public static string Title(string text)
    {
        StringBuilder title = new(text.Length);
        bool inWord = false;
        foreach (char c in text)
        {
            title.Append(inWord ? char.ToLowerInvariant(c) : char.ToUpperInvariant(c));
            inWord = char.IsLetter(c);
        }

        return title.ToString();
    }

    /// <summary><c>str.capitalize</c>.</summary>
    public static string Capitalize(string text) =>
        text.Length == 0 ? text : text[..1].ToUpperInvariant() + Lower(text[1..]);

    /// <summary><c>str.lower</c>.</summary>
    public static string Lower(string text) => text.ToLowerInvariant();

    /// <summary><c>str.upper</c>.</summary>
    public static string Upper(string text) => text.ToUpperInvariant().Replace("ß", "SS", StringComparison.Ordinal);

    /// <summary><c>str.splitlines</c>.</summary>
    public static IEnumerable<string> Lines(string text, bool keepEnds)
    {
        int start = 0;
        while (start < text.Length)
        {
            int end = text.AsSpan(start).IndexOfAny(s_lineEnds);
            if (end < 0)
            {
                yield return text[start..];
                yield break;
            }

            end += start;
            int next = end + (text[end] == '\r' && end + 1 < text.Length && text[end + 1] == '\n' ? 2 : 1);
            yield return text[start..(keepEnds ? next : end)];
            start = next;
        }
    }

    private static bool IsBasic(string text) => !text.AsSpan().ContainsAnyInRange('\uD800', '\uDFFF');
}
