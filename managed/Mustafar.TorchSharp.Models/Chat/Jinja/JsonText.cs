using System.Globalization;
using System.Text;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Values as JSON, spaced like Python's <c>json.dumps</c>: the output of transformers' <c>tojson</c>.</summary>
/// <param name="budget">Bounds the work.</param>
/// <param name="ensureAscii">Whether characters beyond ASCII are escaped.</param>
/// <param name="indent">Indentation of a level; all on one line if null.</param>
/// <param name="itemSeparator">Between elements; depends on the indentation if null.</param>
/// <param name="keySeparator">Between a key and its value.</param>
/// <param name="sortKeys">Whether keys are sorted.</param>
internal sealed class JsonText(
    Budget budget, bool ensureAscii, string? indent, string? itemSeparator, string keySeparator, bool sortKeys)
{
    private readonly string _itemSeparator = itemSeparator ?? (indent is null ? ", " : ",");
    private readonly StringBuilder _text = new();

    /// <summary>Writes a value.</summary>
    /// <exception cref="JinjaException">JSON has no such value.</exception>
    public string Write(object? value)
    {
        Write(value, 0);
        return _text.ToString();
    }

    private void Write(object? value, int level)
    {
        budget.Step();
        budget.SpendLength(_text.Length > 1 << 20 ? _text.Length : 0);
        switch (value)
        {
            case null:
                _text.Append("null");
                break;
            case bool truth:
                _text.Append(truth ? "true" : "false");
                break;
            case long number:
                _text.Append(CultureInfo.InvariantCulture, $"{number}");
                break;
            case double number:
                _text.Append(Float(number));
                break;
            case string content:
                budget.SpendLength(content.Length);
                Quote(content);
                break;
            case JinjaSequence sequence:
                Write('[', ']', sequence.Items, level, item => Write(item, level + 1));
                break;
            case JinjaDict dict:
                IEnumerable<KeyValuePair<object, object?>> pairs = sortKeys
                    ? dict.Items.OrderBy(pair => JinjaDict.FromKey(pair.Key), Comparer<object?>.Create((a, b) => Operators.Compare(budget, a, b)))
                    : dict.Items;
                Write('{', '}', [.. pairs], level, pair =>
                {
                    Quote(KeyOf(JinjaDict.FromKey(pair.Key)));
                    _text.Append(keySeparator);
                    Write(pair.Value, level + 1);
                });
                break;
            default:
                throw new JinjaException($"Object of type {PythonText.TypeName(value)} is not JSON serializable.");
        }
    }

    private void Write<T>(char open, char close, IReadOnlyList<T> items, int level, Action<T> write)
    {
        _text.Append(open);
        for (int i = 0; i < items.Count; i++)
        {
            _text.Append(i > 0 ? _itemSeparator : "");
            Line(level + 1);
            write(items[i]);
        }

        if (items.Count > 0)
        {
            Line(level);
        }

        _text.Append(close);
    }

    private void Line(int level)
    {
        if (indent is not null)
        {
            budget.SpendLength((long)level * indent.Length);
            _text.Append('\n').Insert(_text.Length, indent, level);
        }
    }

    private static string KeyOf(object? key) => key switch
    {
        string text => text,
        null => "null",
        bool truth => truth ? "true" : "false",
        long number => number.ToString(CultureInfo.InvariantCulture),
        double number => Float(number),
        _ => throw new JinjaException($"keys must be str, int, float, bool or None, not {PythonText.TypeName(key)}."),
    };

    private static string Float(double number) =>
        double.IsNaN(number) ? "NaN" : double.IsInfinity(number) ? (number > 0 ? "Infinity" : "-Infinity") : Numbers.Repr(number);

    private void Quote(string content)
    {
        _text.Append('"');
        foreach (char c in content)
        {
            _ = c switch
            {
                '"' => _text.Append("\\\""),
                '\\' => _text.Append("\\\\"),
                '\n' => _text.Append("\\n"),
                '\r' => _text.Append("\\r"),
                '\t' => _text.Append("\\t"),
                '\f' => _text.Append("\\f"),
                '\b' => _text.Append("\\b"),
                < ' ' => _text.Append(CultureInfo.InvariantCulture, $"\\u{(int)c:x4}"),
                > '~' when ensureAscii => _text.Append(CultureInfo.InvariantCulture, $"\\u{(int)c:x4}"),
                _ => _text.Append(c),
            };
        }

        _text.Append('"');
    }
}
