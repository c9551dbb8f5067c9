using System.Globalization;
using System.Text;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Python's <c>text % values</c>: the conversions s, r, d, i, f, x and %.</summary>
internal static class PercentFormat
{
    /// <summary>Fills values into a text.</summary>
    /// <param name="budget">Bounds the work.</param>
    /// <param name="format">The text.</param>
    /// <param name="values">A tuple, a dictionary for <c>%(name)s</c>, or one value.</param>
    /// <exception cref="JinjaException">A conversion is not supported, or the values don't fit.</exception>
    public static string Apply(Budget budget, string format, object? values)
    {
        IReadOnlyList<object?> items = values is JinjaTuple tuple ? tuple.Items : [values];
        StringBuilder text = new();
        int next = 0;
        for (int i = 0; i < format.Length; i++)
        {
            if (format[i] != '%')
            {
                text.Append(format[i]);
                continue;
            }

            i++;
            string? key = null;
            if (i < format.Length && format[i] == '(')
            {
                int end = format.IndexOf(')', i);
                key = end > 0 ? format[(i + 1)..end] : throw new JinjaException("incomplete format key.");
                i = end + 1;
            }

            int start = i;
            while (i < format.Length && format[i] is '-' or '+' or '0' or '.' or >= '1' and <= '9')
            {
                i++;
            }

            string size = format[start..i];
            char kind = i < format.Length ? format[i] : throw new JinjaException("incomplete format.");
            if (kind == '%')
            {
                text.Append('%');
                continue;
            }

            object? value = key is not null ? Access.Item(values, key)
                : next < items.Count ? items[next++] : throw new JinjaException("not enough arguments for format string.");
            text.Append(Pad(Convert(budget, kind, size, value), size, budget));
        }

        return next < items.Count && values is not JinjaDict
            ? throw new JinjaException("not all arguments converted during string formatting.")
            : text.ToString();
    }

    /// <summary>A number with a fixed number of digits behind the point, rounded from its exact value.</summary>
    public static string Fixed(double number, int digits) => number.ToString("F" + digits.ToString(CultureInfo.InvariantCulture), CultureInfo.InvariantCulture);

    private static string Convert(Budget budget, char kind, string size, object? value)
    {
        int point = size.IndexOf('.');
        int digits = point < 0 ? -1 : int.TryParse(size[(point + 1)..], NumberStyles.None, CultureInfo.InvariantCulture, out int given) ? Math.Min(given, 300) : 0;
        switch (kind)
        {
            case 's' or 'r':
                StringBuilder repr = new();
                if (kind == 'r')
                {
                    PythonText.Repr(budget, value, repr);
                }

                string text = kind == 's' ? PythonText.Str(budget, value) : repr.ToString();
                return digits >= 0 && digits < PythonString.Length(text) ? text[..PythonString.ToUnits(text, digits)] : text;
            case 'd' or 'i' when Numbers.TryFloat(value, out double real):
                return (size.StartsWith('+') && real >= 0 ? "+" : "")
                    + (Numbers.TryInteger(value, out long integer) ? integer : (long)real).ToString(CultureInfo.InvariantCulture);
            case 'f' when Numbers.TryFloat(value, out double number):
                return (size.StartsWith('+') && number >= 0 ? "+" : "") + Fixed(number, digits < 0 ? 6 : digits);
            case 'x' when Numbers.TryInteger(value, out long hex) && hex >= 0:
                return hex.ToString("x", CultureInfo.InvariantCulture);
            default:
                throw new JinjaException($"the conversion '%{kind}' of {PythonText.TypeName(value)} is not supported.");
        }
    }

    private static string Pad(string text, string size, Budget budget)
    {
        string width = size.Split('.')[0].TrimStart('-', '+');
        return !long.TryParse(width, NumberStyles.None, CultureInfo.InvariantCulture, out long wanted) ? text
            : size.StartsWith('-') ? StringMethods.Pad(budget, text, wanted, " ", 0)
            : StringMethods.Pad(budget, text, wanted, width.StartsWith('0') ? "0" : " ", 1);
    }
}
