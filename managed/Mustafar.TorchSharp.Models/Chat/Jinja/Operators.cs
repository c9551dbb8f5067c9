namespace Mustafar.Models.Chat.Jinja;

/// <summary>Python's operators on values of a template.</summary>
internal static class Operators
{
    /// <summary>Whether a value counts as true.</summary>
    public static bool IsTrue(object? value) => value switch
    {
        null or Undefined => false,
        bool truth => truth,
        string text => text.Length > 0,
        long number => number != 0,
        double number => number != 0,
        JinjaSequence sequence => sequence.Items.Count > 0,
        JinjaDict dict => dict.Items.Count > 0,
        _ => true,
    };

    /// <summary>The result of a binary operator.</summary>
    /// <exception cref="JinjaException">The types don't support it.</exception>
    public static object? Compute(Budget budget, string op, object? left, object? right)
    {
        ThrowIfUndefined(left);
        if (op == "%" && left is string format)
        {
            return PercentFormat.Apply(budget, format, right);
        }

        ThrowIfUndefined(right);
        if (Numbers.TryCompute(op, left, right, out object? number))
        {
            return number;
        }

        object? result = (op, left, right) switch
        {
            ("+", string a, string b) => Concat(budget, a, b),
            ("+", JinjaList a, JinjaList b) => Join(budget, a, b),
            ("+", JinjaTuple a, JinjaTuple b) => Join(budget, a, b),
            ("*", string or JinjaSequence, long or bool) => Repeat(budget, left, right),
            ("*", long or bool, string or JinjaSequence) => Repeat(budget, right, left),
            _ => throw new JinjaException(
                $"unsupported operand types for {op}: '{PythonText.TypeName(left)}' and '{PythonText.TypeName(right)}'."),
        };
        return result;
    }

    /// <summary>Concatenates two texts.</summary>
    public static string Concat(Budget budget, string a, string b)
    {
        budget.SpendLength((long)a.Length + b.Length);
        return a + b;
    }

    /// <summary>Whether two values are equal.</summary>
    public static bool AreEqual(Budget budget, object? a, object? b)
    {
        budget.Step();
        switch (a, b)
        {
            case (string x, string y):
                budget.SpendLength(x.Length);
                return x == y;
            case (long x, long y):
                return x == y;
            case (JinjaList, JinjaList) or (JinjaTuple, JinjaTuple):
                IReadOnlyList<object?> left = ((JinjaSequence)a!).Items;
                IReadOnlyList<object?> right = ((JinjaSequence)b!).Items;
                if (left.Count != right.Count)
                {
                    return false;
                }

                for (int i = 0; i < left.Count; i++)
                {
                    if (!AreEqual(budget, left[i], right[i]))
                    {
                        return false;
                    }
                }

                return true;
            case (JinjaDict x, JinjaDict y):
                if (x.Items.Count != y.Items.Count)
                {
                    return false;
                }

                foreach ((object key, object? value) in x.Items)
                {
                    if (!y.Items.TryGetValue(key, out object? other) || !AreEqual(budget, value, other))
                    {
                        return false;
                    }
                }

                return true;
            case (Undefined, Undefined):
                return true;
            default:
                return Numbers.TryFloat(a, out double p) && Numbers.TryFloat(b, out double q) ? p == q : ReferenceEquals(a, b);
        }
    }

    /// <summary>Orders two values.</summary>
    /// <exception cref="JinjaException">Their types have no order.</exception>
    public static int Compare(Budget budget, object? a, object? b)
    {
        budget.Step();
        switch (a, b)
        {
            case (string x, string y):
                budget.SpendLength(Math.Min(x.Length, y.Length));
                return PythonString.Compare(x, y);
            case (JinjaList, JinjaList) or (JinjaTuple, JinjaTuple):
                IReadOnlyList<object?> left = ((JinjaSequence)a!).Items;
                IReadOnlyList<object?> right = ((JinjaSequence)b!).Items;
                for (int i = 0; i < Math.Min(left.Count, right.Count); i++)
                {
                    if (!AreEqual(budget, left[i], right[i]))
                    {
                        return Compare(budget, left[i], right[i]);
                    }
                }

                return left.Count.CompareTo(right.Count);
        }

        ThrowIfUndefined(a);
        ThrowIfUndefined(b);
        return Numbers.TryInteger(a, out long m) && Numbers.TryInteger(b, out long n) ? m.CompareTo(n)
            : Numbers.TryFloat(a, out double p) && Numbers.TryFloat(b, out double q) ? p.CompareTo(q)
            : throw new JinjaException($"'{PythonText.TypeName(a)}' and '{PythonText.TypeName(b)}' have no order.");
    }

    /// <summary>The result of a comparison.</summary>
    public static bool Compare(Budget budget, string op, object? left, object? right)
    {
        switch (op)
        {
            case "==":
                return AreEqual(budget, left, right);
            case "!=":
                return !AreEqual(budget, left, right);
            case "in":
                return Contains(budget, right, left);
            case "not in":
                return !Contains(budget, right, left);
        }

        if (left is double.NaN || right is double.NaN)
        {
            return false;
        }

        int order = Compare(budget, left, right);
        return op switch { "<" => order < 0, "<=" => order <= 0, ">" => order > 0, _ => order >= 0 };
    }

    /// <summary>Whether a container has an element, a key or a part of a text.</summary>
    public static bool Contains(Budget budget, object? container, object? item)
    {
        switch (container)
        {
            case string text:
                string part = item as string ?? throw (item as Undefined)?.Error()
                    ?? new JinjaException($"'in <string>' requires string as left operand, not {PythonText.TypeName(item)}.");
                budget.SpendLength(text.Length);
                return text.Contains(part, StringComparison.Ordinal);
            case JinjaDict dict:
                return item is not Undefined && dict.Items.ContainsKey(JinjaDict.Key(item));
            case Undefined:
                return false;
            default:
                return Iterate(container).Any(element => AreEqual(budget, element, item));
        }
    }

    /// <summary>The elements of a value.</summary>
    /// <exception cref="JinjaException">It has none.</exception>
    public static IEnumerable<object?> Iterate(object? value) => value switch
    {
        JinjaSequence sequence => sequence.Items,
        JinjaDict dict => dict.Items.Keys.Select(JinjaDict.FromKey),
        string text => PythonString.Characters(text),
        JinjaGenerator generator => generator.Take(),
        Undefined => [],
        _ => throw new JinjaException($"'{PythonText.TypeName(value)}' object is not iterable."),
    };

    /// <summary>The number of elements.</summary>
    /// <exception cref="JinjaException">The value has no length.</exception>
    public static long Length(object? value) => value switch
    {
        string text => PythonString.Length(text),
        JinjaSequence sequence => sequence.Items.Count,
        JinjaDict dict => dict.Items.Count,
        Undefined => 0,
        _ => throw new JinjaException($"object of type '{PythonText.TypeName(value)}' has no length."),
    };

    /// <summary>Fails for an undefined value.</summary>
    public static void ThrowIfUndefined(object? value)
    {
        if (value is Undefined undefined)
        {
            throw undefined.Error();
        }
    }

    private static JinjaSequence Join(Budget budget, JinjaSequence a, JinjaSequence b)
    {
        budget.SpendLength((a.Items.Count + (long)b.Items.Count) * 4);
        return a.With([.. a.Items, .. b.Items]);
    }

    private static object Repeat(Budget budget, object? value, object? times)
    {
        _ = Numbers.TryInteger(times, out long count);
        count = Math.Max(0, count);
        long length = value is string content ? content.Length : ((JinjaSequence)value!).Items.Count * 4L;
        if (length == 0)
        {
            return value!;
        }

        budget.SpendLength(count > int.MaxValue / length ? int.MaxValue : count * length);
        return value is string text
            ? string.Concat(Enumerable.Repeat(text, (int)count))
            : ((JinjaSequence)value).With([.. Enumerable.Repeat(((JinjaSequence)value).Items, (int)count).SelectMany(items => items)]);
    }
}
