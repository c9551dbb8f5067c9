namespace Mustafar.Models.Chat.Jinja;

/// <summary>Attributes, items and slices of values.</summary>
internal static class Access
{
    // Jinja's sandbox prevents templates from changing their inputs.
    private static readonly HashSet<string> s_changing =
        ["append", "extend", "insert", "pop", "remove", "sort", "reverse", "clear", "popitem", "setdefault", "update"];

    /// <summary><c>value.name</c>: a method or attribute, otherwise an item.</summary>
    public static object? Attribute(object? value, string name)
    {
        Operators.ThrowIfUndefined(value);
        return TryAttribute(value, name, out object? found) ? found
            : value is JinjaDict dict && dict.Items.TryGetValue(name, out object? item) ? item
            : Missing(value, name);
    }

    /// <summary><c>value[key]</c>: an item, otherwise a method or attribute.</summary>
    public static object? Item(object? value, object? key)
    {
        Operators.ThrowIfUndefined(value);
        switch (value)
        {
            case JinjaDict dict when key is not Undefined && dict.Items.TryGetValue(JinjaDict.Key(key), out object? item):
                return item;
            case JinjaSequence sequence when Numbers.TryInteger(key, out long index):
                int at = (int)Math.Clamp(index < 0 ? index + sequence.Items.Count : index, -1, int.MaxValue);
                return at >= 0 && at < sequence.Items.Count ? sequence.Items[at] : Missing(value, index);
            case string text when Numbers.TryInteger(key, out long index):
                long length = PythonString.Length(text);
                index = index < 0 ? index + length : index;
                if (index < 0 || index >= length)
                {
                    return Missing(value, index);
                }

                int start = PythonString.ToUnits(text, (int)index);
                return text.Substring(start, char.IsSurrogatePair(text, start) ? 2 : 1);
        }

        return key is string name && TryAttribute(value, name, out object? found) ? found : Missing(value, key);
    }

    /// <summary><c>value[from:to:step]</c>.</summary>
    /// <exception cref="JinjaException">The value has no slices, or a bound is not an integer.</exception>
    public static object? Slice(object? value, object? from, object? to, object? step)
    {
        Operators.ThrowIfUndefined(value);
        long by = Bound(step) ?? 1;
        if (by == 0)
        {
            throw new JinjaException("slice step cannot be zero.");
        }

        if (value is not (string or JinjaSequence))
        {
            return Missing(value, "slice");
        }

        long length = Operators.Length(value);
        long start = Position(Bound(from), by > 0 ? 0 : length - 1);
        long end = Position(Bound(to), by > 0 ? length : -1);
        if (value is string text)
        {
            if (by == 1)
            {
                int first = PythonString.ToUnits(text, (int)start);
                return start < end ? text[first..PythonString.ToUnits(text, (int)end)] : "";
            }

            string[] characters = [.. PythonString.Characters(text)];
            return string.Concat(Indices().Select(i => characters[i]));
        }

        JinjaSequence sequence = (JinjaSequence)value;
        return sequence.With([.. Indices().Select(i => sequence.Items[i])]);

        long Position(long? bound, long fallback)
        {
            if (bound is not long position)
            {
                return fallback;
            }

            position = position < 0 ? position + length : position;
            return by > 0 ? Math.Clamp(position, 0, length) : Math.Clamp(position, -1, length - 1);
        }

        IEnumerable<int> Indices()
        {
            for (long i = start; by > 0 ? i < end : i > end; i += by)
            {
                yield return (int)i;
                if (Math.Abs(by) > length)
                {
                    yield break;
                }
            }
        }
    }

    private static long? Bound(object? value) => value is null ? null
        : Numbers.TryInteger(value, out long number) ? number
        : throw (value as Undefined)?.Error() ?? new JinjaException("slice indices must be integers or None.");

    private static bool TryAttribute(object? value, string name, out object? found)
    {
        if (value is IHasAttributes attributes)
        {
            return attributes.TryGet(name, out found);
        }

        if (value is JinjaDict or JinjaSequence && s_changing.Contains(name)
            && (value is JinjaDict ? name is "clear" or "pop" or "popitem" or "setdefault" or "update" : name is not ("popitem" or "setdefault" or "update")))
        {
            found = new Undefined($"access to attribute '{name}' of '{PythonText.TypeName(value)}' object is unsafe: templates can't change values.");
            return true;
        }

        Function? method = value switch
        {
            string => StringMethods.Find(name),
            JinjaDict => ContainerMethods.OfDict(name),
            JinjaSequence => ContainerMethods.OfSequence(name),
            _ => null,
        };
        found = method is null ? null : new BoundMethod(method, value);
        return method is not null;
    }

    private static Undefined Missing(object? value, object? key) => new(key is string name
        ? $"'{PythonText.TypeName(value)} object' has no attribute '{name}'."
        : $"{PythonText.TypeName(value)} object has no element {key}.");
}
