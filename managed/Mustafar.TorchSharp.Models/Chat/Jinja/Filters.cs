namespace Mustafar.Models.Chat.Jinja;

/// <summary>The filters of Jinja that chat templates use, and transformers' <c>tojson</c>.</summary>
internal static class Filters
{
    private static readonly string[] s_sorting = ["case_sensitive", "attribute"];

    private static readonly FunctionTable s_all = new()
    {
        { "default d", call => call.Self is Undefined || (call.Flag(1) && !Operators.IsTrue(call.Self)) ? (call.Given[0] ? call.Values[0] : "") : call.Self, ["default_value", "boolean"] },
        { "tojson", ToJson, ["ensure_ascii", "indent", "separators", "sort_keys"] },
        { "trim", call => StringMethods.Strip(call.Text, call.Has(0) ? call.String(0) : null, true, true), ["chars"] },
        { "replace", call => StringMethods.Replace(call.Budget, call.Text, PythonText.Str(call.Budget, call.Values[0]), PythonText.Str(call.Budget, call.Values[1]), call.Integer(2, -1)), ["old", "new", "count"], 2 },
        { "join", Join, ["d", "attribute"] },
        { "indent", Indent, ["width", "first", "blank"] },
        { "format", call => PercentFormat.Apply(call.Budget, call.Text, call.All.Named.Count > 0 ? DictOf(call.All.Named) : new JinjaTuple(call.All.Positional)) },
        { "center", call => StringMethods.Pad(call.Budget, call.Text, call.Integer(0, 80), " ", 0.5), ["width"] },
        { "int", ToInteger, ["default", "base"] },
        { "float", ToFloat, ["default"] },
        { "round", Round, ["precision", "method"] },
        { "sort", Sort, ["reverse", "case_sensitive", "attribute"] },
        { "dictsort", DictSort, ["case_sensitive", "by", "reverse"] },
        { "unique", Unique, s_sorting },
        { "min", call => Extreme(call, -1), s_sorting },
        { "max", call => Extreme(call, 1), s_sorting },
        { "sum", Sum, ["attribute", "start"] },
        { "map", Map },
        { "select", call => Select(call, byAttribute: false, wanted: true) },
        { "reject", call => Select(call, byAttribute: false, wanted: false) },
        { "selectattr", call => Select(call, byAttribute: true, wanted: true) },
        { "rejectattr", call => Select(call, byAttribute: true, wanted: false) },
        { "attr", call => Access.Attribute(call.Self, call.String(0)), ["name"], 1 },
    };

    static Filters()
    {
        s_all.AddPlain("length count", call => Operators.Length(call.Self));
        s_all.AddPlain("string safe", call => call.Text);
        s_all.AddPlain("upper", call => PythonString.Upper(call.Text));
        s_all.AddPlain("lower", call => PythonString.Lower(call.Text));
        s_all.AddPlain("capitalize", call => PythonString.Capitalize(call.Text));
        s_all.AddPlain("title", call => TitleByWords(call.Text));
        s_all.AddPlain("escape e", call => Escape(call.Text));
        s_all.AddPlain("list", call => new JinjaList(Items(call)));
        s_all.AddPlain("first", call => Items(call) is [object first, ..] ? first : Operators.Length(call.Self) > 0 ? null : new Undefined("no first item, the sequence was empty."));
        s_all.AddPlain("last", call => Items(call) is [.., object last] ? last : Operators.Length(call.Self) > 0 ? null : new Undefined("no last item, the sequence was empty."));
        s_all.AddPlain("reverse", call => call.Self is string text
            ? string.Concat(PythonString.Characters(text).Reverse())
            : new JinjaGenerator(Enumerable.Reverse(Items(call))));
        s_all.AddPlain("abs", call => call.Self is double number ? (object)Math.Abs(number)
            : Numbers.TryInteger(call.Self, out long integer) && integer != long.MinValue ? Math.Abs(integer)
            : throw new JinjaException($"bad operand type for abs(): '{PythonText.TypeName(call.Self)}'."));
        s_all.AddPlain("items", call => call.Self switch
        {
            Undefined => new JinjaList([]),
            JinjaDict dict => ContainerMethods.Items(dict),
            _ => throw new JinjaException("Can only get item pairs from a mapping."),
        });
        s_all.AddPlain("wordcount", call => (long)StringMethods.Words(call.Text).Count());
    }

    /// <summary>A filter.</summary>
    /// <exception cref="JinjaException">There is no filter of this name here.</exception>
    public static Function Find(string name) => s_all.TryGetValue(name, out Function? filter)
        ? filter
        : throw new JinjaException($"the filter '{name}' is not supported.");

    private static List<object?> Items(Invocation call)
    {
        List<object?> items = [.. Operators.Iterate(call.Self)];
        call.Budget.SpendLength(items.Count * 4L);
        return items;
    }

    private static JinjaDict DictOf(IReadOnlyDictionary<string, object?> values)
    {
        JinjaDict dict = new();
        foreach ((string key, object? value) in values)
        {
            dict.Items[key] = value;
        }

        return dict;
    }

    private static string ToJson(Invocation call)
    {
        string? indent = !call.Has(1) ? null : call.Values[1] is string text ? text : new string(' ', (int)Math.Clamp(call.Integer(1, 0), 0, 1000));
        object?[] separators = call.Has(2) ? [.. Operators.Iterate(call.Values[2])] : [];
        return new JsonText(
            call.Budget,
            call.Flag(0),
            indent,
            separators.Length == 2 ? PythonText.Str(call.Budget, separators[0]) : null,
            separators.Length == 2 ? PythonText.Str(call.Budget, separators[1]) : ": ",
            call.Flag(3)).Write(call.Self);
    }

    private static string Join(Invocation call)
    {
        Func<object?, object?> element = call.Has(1) ? Getter(call.Values[1]) : item => item;
        string[] texts = [.. Items(call).Select(item => PythonText.Str(call.Budget, element(item)))];
        string separator = call.Given[0] ? PythonText.Str(call.Budget, call.Values[0]) : "";
        call.Budget.SpendLength(texts.Sum(text => (long)text.Length + separator.Length));
        return string.Join(separator, texts);
    }

    private static string Indent(Invocation call)
    {
        string margin = call.Has(0) && call.Values[0] is string text ? text : new string(' ', (int)Math.Clamp(call.Integer(0, 4), 0, 1000));
        List<string> lines = [.. PythonString.Lines(call.Text + "\n", keepEnds: false)];
        call.Budget.SpendLength((long)lines.Count * margin.Length);
        IEnumerable<string> indented = lines.Select((line, i) => (i == 0 ? call.Flag(1) : line.Length > 0 || call.Flag(2)) ? margin + line : line);
        return string.Join('\n', indented);
    }

    private static string TitleByWords(string text)
    {
        System.Text.StringBuilder title = new(PythonString.Lower(text));
        for (int i = 0; i < title.Length; i++)
        {
            if (i == 0 || title[i - 1] is '-' or '(' or '{' or '[' or '<' || PythonString.IsSpace(title[i - 1]))
            {
                title[i] = char.ToUpperInvariant(title[i]);
            }
        }

        return title.ToString();
    }

    private static string Escape(string text) => text
        .Replace("&", "&amp;", StringComparison.Ordinal).Replace("<", "&lt;", StringComparison.Ordinal)
        .Replace(">", "&gt;", StringComparison.Ordinal).Replace("'", "&#39;", StringComparison.Ordinal).Replace("\"", "&#34;", StringComparison.Ordinal);

    private static object? ToInteger(Invocation call)
    {
        object? fallback = call.Given[0] ? call.Values[0] : 0L;
        switch (call.Self)
        {
            case double number:
                return Math.Abs(number) < 9e18 ? (long)number : fallback;
            case string text when call.Integer(1, 10) == 10:
                return Numbers.TryParse(text, out long integer) ? integer
                    : Numbers.TryParse(text, out double real) && Math.Abs(real) < 9e18 ? (long)real : fallback;
            case string:
                throw new JinjaException("the filter 'int' with another base than 10 is not supported.");
            case Undefined undefined:
                throw undefined.Error();
            default:
                return Numbers.TryInteger(call.Self, out long other) ? other : fallback;
        }
    }

    private static object? ToFloat(Invocation call) => call.Self switch
    {
        string text => Numbers.TryParse(text, out double number) ? number : call.Given[0] ? call.Values[0] : 0.0,
        Undefined undefined => throw undefined.Error(),
        _ => Numbers.TryFloat(call.Self, out double number) ? number : call.Given[0] ? call.Values[0] : 0.0,
    };

    private static object Round(Invocation call)
    {
        if (call.Self is long && call.String(1, "common") == "common" && call.Integer(0, 0) >= 0)
        {
            return call.Self;
        }

        double value = Numbers.TryFloat(call.Self, out double number)
            ? number : throw new JinjaException($"type {PythonText.TypeName(call.Self)} can't be rounded.");
        int precision = (int)Math.Clamp(call.Integer(0, 0), -300, 300);
        double factor = Math.Pow(10, precision);
        return call.String(1, "common") switch
        {
            "ceil" => Math.Ceiling(value * factor) / factor,
            "floor" => Math.Floor(value * factor) / factor,
            "common" when precision > 0 => double.Parse(PercentFormat.Fixed(value, precision), System.Globalization.CultureInfo.InvariantCulture),
            "common" => Math.Round(value * factor, MidpointRounding.ToEven) / factor,
            string other => throw new JinjaException($"expected 'common', 'ceil' or 'floor' as method, but got '{other}'."),
        };
    }

    // An attribute, with points between parts, which may be numbers.
    private static Func<object?, object?> Getter(object? attribute)
    {
        object[] parts = attribute is string path
            ? [.. path.Split('.').Select(part => Numbers.TryParse(part, out long index) ? (object)index : part)]
            : [attribute ?? throw new JinjaException("expected the name of an attribute.")];
        return item => parts.Aggregate(item, Access.Item);
    }

    private static Func<object?, object?> SortKey(Invocation call, int caseSensitive, int attribute)
    {
        Func<object?, object?> get = !call.Has(attribute) ? item => item
            : call.Values[attribute] is string names && names.Contains(',')
                ? item => new JinjaList([.. names.Split(',').Select(name => Lowered(Getter(name)(item)))])
            : Getter(call.Values[attribute]);
        return item => Lowered(get(item));

        object? Lowered(object? value) => value is string text && !call.Flag(caseSensitive) ? PythonString.Lower(text) : value;
    }

    private static Comparer<object?> Order(Invocation call) => Comparer<object?>.Create((a, b) => Operators.Compare(call.Budget, a, b));

    private static JinjaList Sort(Invocation call) => new(Sorted(Items(call), SortKey(call, 1, 2), Order(call), call.Flag(0)));

    private static JinjaList DictSort(Invocation call)
    {
        JinjaDict dict = call.Self as JinjaDict ?? throw new JinjaException("expected a mapping to sort.");
        long at = call.String(1, "key") switch
        {
            "key" => 0,
            "value" => 1,
            string other => throw new JinjaException($"expected 'key' or 'value' as by, but got '{other}'."),
        };
        Func<object?, object?> key = pair => Access.Item(pair, at) is string text && !call.Flag(0) ? PythonString.Lower(text) : Access.Item(pair, at);
        return new JinjaList(Sorted(ContainerMethods.Items(dict).Items, key, Order(call), call.Flag(2)));
    }

    // Equal elements keep their order, even in reverse.
    private static List<object?> Sorted(IReadOnlyList<object?> items, Func<object?, object?> key, IComparer<object?> order, bool reverse)
    {
        try
        {
            return [.. reverse ? items.OrderByDescending(key, order) : items.OrderBy(key, order)];
        }
        catch (InvalidOperationException exception) when (exception.InnerException is JinjaException inner)
        {
            throw inner;
        }
    }

    private static JinjaGenerator Unique(Invocation call)
    {
        Func<object?, object?> key = SortKey(call, 0, 1);
        JinjaDict seen = new();
        return new JinjaGenerator([.. Items(call).Where(item => seen.Items.TryAdd(JinjaDict.Key(key(item)), null))]);
    }

    private static object? Extreme(Invocation call, int sign)
    {
        Func<object?, object?> key = SortKey(call, 0, 1);
        List<object?> items = Items(call);
        if (items.Count == 0)
        {
            return new Undefined("No aggregated item, sequence was empty.");
        }

        return items.Aggregate((best, item) => Operators.Compare(call.Budget, key(item), key(best)) * sign > 0 ? item : best);
    }

    private static object? Sum(Invocation call)
    {
        Func<object?, object?> get = call.Has(0) ? Getter(call.Values[0]) : item => item;
        return Items(call).Aggregate(call.Given[1] ? call.Values[1] : 0L, (sum, item) => Operators.Compute(call.Budget, "+", sum, get(item)));
    }

    private static JinjaGenerator Map(Invocation call)
    {
        (IReadOnlyList<object?> positional, IReadOnlyDictionary<string, object?> named) = call.All;
        if (positional.Count == 0 && named.TryGetValue("attribute", out object? attribute))
        {
            Func<object?, object?> get = Getter(attribute);
            bool hasDefault = named.TryGetValue("default", out object? fallback);
            return new JinjaGenerator([.. Items(call).Select(item => get(item) is var value && value is Undefined && hasDefault ? fallback : value)]);
        }

        Function filter = Find((positional.Count > 0 ? positional[0] : null) as string ?? throw new JinjaException("map needs a filter's name or attribute=…."));
        Arguments arguments = new([.. positional.Skip(1)], named);
        return new JinjaGenerator([.. Items(call).Select(item => filter.Invoke(call.Budget, item, arguments))]);
    }

    private static JinjaGenerator Select(Invocation call, bool byAttribute, bool wanted)
    {
        IReadOnlyList<object?> given = call.All.Positional;
        Func<object?, object?> get = item => item;
        if (byAttribute)
        {
            get = Getter(given.Count > 0 ? given[0] : throw new JinjaException("expected the name of an attribute."));
            given = [.. given.Skip(1)];
        }

        Function? test = given.Count == 0 ? null : Tests.Find(given[0] as string ?? throw new JinjaException("expected a test's name."));
        Arguments arguments = new([.. given.Skip(1)], call.All.Named);
        return new JinjaGenerator([.. Items(call).Where(item =>
            Operators.IsTrue(test is null ? get(item) : test.Invoke(call.Budget, get(item), arguments)) == wanted)]);
    }
}
