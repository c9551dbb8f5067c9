using System.Globalization;
using System.Text;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Values as text: Python's <c>str</c> and <c>repr</c>.</summary>
internal static class PythonText
{
    /// <summary>What <c>{{ value }}</c> writes.</summary>
    public static string Str(Budget budget, object? value)
    {
        if (value is string text)
        {
            return text;
        }

        StringBuilder result = new();
        Repr(budget, value, result);
        return result.ToString();
    }

    /// <summary>Python's name of a value's type.</summary>
    public static string TypeName(object? value) => value switch
    {
        null => "NoneType",
        string => "str",
        bool => "bool",
        long => "int",
        double => "float",
        JinjaList => "list",
        JinjaTuple => "tuple",
        JinjaDict => "dict",
        JinjaGenerator => "generator",
        JinjaNamespace => "Namespace",
        Undefined => "Undefined",
        _ => value.GetType().Name,
    };

    /// <summary>Appends a value as <c>repr</c> writes it.</summary>
    /// <exception cref="JinjaException">The text is too long.</exception>
    public static void Repr(Budget budget, object? value, StringBuilder text)
    {
        budget.Step();
        budget.SpendLength(text.Length > 1 << 20 ? text.Length : 0);
        switch (value)
        {
            case null:
                text.Append("None");
                break;
            case Undefined:
                break;
            case bool truth:
                text.Append(truth ? "True" : "False");
                break;
            case long number:
                text.Append(CultureInfo.InvariantCulture, $"{number}");
                break;
            case double number:
                text.Append(Numbers.Repr(number));
                break;
            case string content:
                budget.SpendLength(content.Length);
                Quote(content, text);
                break;
            case JinjaSequence sequence:
                text.Append(sequence is JinjaTuple ? '(' : '[');
                for (int i = 0; i < sequence.Items.Count; i++)
                {
                    text.Append(i > 0 ? ", " : "");
                    Repr(budget, sequence.Items[i], text);
                }

                text.Append(sequence is not JinjaTuple ? "]" : sequence.Items.Count == 1 ? ",)" : ")");
                break;
            case JinjaDict dict:
                text.Append('{');
                foreach ((object key, object? item) in dict.Items)
                {
                    text.Append(text[^1] == '{' && ReferenceEquals(key, dict.Items.Keys.First()) ? "" : ", ");
                    Repr(budget, JinjaDict.FromKey(key), text);
                    text.Append(": ");
                    Repr(budget, item, text);
                }

                text.Append('}');
                break;
            default:
                text.Append('<').Append(TypeName(value)).Append('>');
                break;
        }
    }

    private static void Quote(string content, StringBuilder text)
    {
        char quote = content.Contains('\'') && !content.Contains('"') ? '"' : '\'';
        text.Append(quote);
        foreach (string character in PythonString.Characters(content))
        {
            int code = character.Length == 2 ? char.ConvertToUtf32(character[0], character[1]) : character[0];
            string? escape = code switch
            {
                '\n' => "\\n",
                '\r' => "\\r",
                '\t' => "\\t",
                '\\' => "\\\\",
                _ when code == quote => "\\" + quote,
                _ when IsPrintable(code) => null,
                <= 0xFF => $"\\x{code:x2}",
                <= 0xFFFF => $"\\u{code:x4}",
                _ => $"\\U{code:x8}",
            };
            text.Append(escape ?? character);
        }

        text.Append(quote);
    }

    private static bool IsPrintable(int code) => code == ' ' || CharUnicodeInfo.GetUnicodeCategory(code) is not (
        UnicodeCategory.Control or UnicodeCategory.Format or UnicodeCategory.Surrogate or UnicodeCategory.PrivateUse
        or UnicodeCategory.OtherNotAssigned or UnicodeCategory.LineSeparator or UnicodeCategory.ParagraphSeparator
        or UnicodeCategory.SpaceSeparator);
}
