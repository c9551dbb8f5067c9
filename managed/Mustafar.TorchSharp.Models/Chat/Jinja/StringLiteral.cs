using System.Globalization;
using System.Text;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Strings in a template, with Python's escapes.</summary>
internal static class StringLiteral
{
    /// <summary>Reads a string.</summary>
    /// <param name="source">The template.</param>
    /// <param name="start">Where its opening quote is.</param>
    /// <param name="line">Its line.</param>
    /// <returns>The value, and the place behind the closing quote.</returns>
    /// <exception cref="JinjaException">It has no end, or an escape is not valid.</exception>
    public static (string Value, int End) Read(string source, int start, int line)
    {
        StringBuilder value = new();
        for (int i = start + 1; i < source.Length; i++)
        {
            char c = source[i];
            if (c == source[start])
            {
                return (value.ToString(), i + 1);
            }

            if (c == '\\' && i + 1 < source.Length)
            {
                i = Escape(source, i + 1, line, value);
            }
            else
            {
                value.Append(c);
            }
        }

        throw new JinjaException("the string has no end.", line);
    }

    // Returns the escape's last character.
    private static int Escape(string source, int at, int line, StringBuilder value)
    {
        char c = source[at];
        switch (c)
        {
            case '\n':
                return at;
            case '\\' or '\'' or '"':
                value.Append(c);
                return at;
            case 'x':
                return Hex(2);
            case 'u':
                return Hex(4);
            case 'U':
                return Hex(8);
            case 'N':
                throw new JinjaException("\\N{…} in a string is not supported; write \\u and four digits.", line);
            case >= '0' and <= '7':
                int end = at;
                int number = 0;
                while (end < source.Length && end < at + 3 && source[end] is >= '0' and <= '7')
                {
                    number = (number * 8) + (source[end++] - '0');
                }

                value.Append((char)number);
                return end - 1;
            default:
                int known = "abfnrtv".IndexOf(c);
                _ = known >= 0 ? value.Append("\a\b\f\n\r\t\v"[known]) : value.Append('\\').Append(c);
                return at;
        }

        int Hex(int digits)
        {
            ReadOnlySpan<char> text = source.AsSpan(at + 1, Math.Min(digits, source.Length - at - 1));
            if (text.Length < digits || !int.TryParse(text, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out int code)
                || code is < 0 or > 0x10FFFF)
            {
                throw new JinjaException($"expected {digits} hexadecimal digits of a character after '\\{c}'.", line);
            }

            _ = code > 0xFFFF ? value.Append(char.ConvertFromUtf32(code)) : value.Append((char)code);
            return at + digits;
        }
    }
}
