using System.Text;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Methods of strings.</summary>
internal static class StringMethods
{
    private static readonly string[] s_chars = ["chars"];
    private static readonly string[] s_split = ["sep", "maxsplit"];
    private static readonly string[] s_search = ["sub", "start", "end"];
    private static readonly string[] s_width = ["width", "fillchar"];

    private static readonly FunctionTable s_all = new()
    {
        { "strip", call => Strip(Self(call), Chars(call), true, true), s_chars },
        { "lstrip", call => Strip(Self(call), Chars(call), true, false), s_chars },
        { "rstrip", call => Strip(Self(call), Chars(call), false, true), s_chars },
        { "split", call => Split(call, fromEnd: false), s_split },
        { "rsplit", call => Split(call, fromEnd: true), s_split },
        { "splitlines", call => new JinjaList([.. PythonString.Lines(Self(call), call.Flag(0))]), ["keepends"] },
        { "partition", call => Partition(call, last: false), ["sep"], 1 },
        { "rpartition", call => Partition(call, last: true), ["sep"], 1 },
        { "startswith", call => HasAtEnd(call, (text, part) => text.StartsWith(part, StringComparison.Ordinal)), s_search, 1 },
        { "endswith", call => HasAtEnd(call, (text, part) => text.EndsWith(part, StringComparison.Ordinal)), s_search, 1 },
        { "removeprefix", call => Self(call).StartsWith(call.String(0), StringComparison.Ordinal) ? Self(call)[call.String(0).Length..] : Self(call), ["prefix"], 1 },
        { "removesuffix", call => Self(call).EndsWith(call.String(0), StringComparison.Ordinal) ? Self(call)[..^call.String(0).Length] : Self(call), ["suffix"], 1 },
        { "replace", call => Replace(call.Budget, Self(call), call.String(0), call.String(1), call.Integer(2, -1)), ["old", "new", "count"], 2 },
        { "find", call => Find(call, last: false, mustBe: false), s_search, 1 },
        { "rfind", call => Find(call, last: true, mustBe: false), s_search, 1 },
        { "index", call => Find(call, last: false, mustBe: true), s_search, 1 },
        { "rindex", call => Find(call, last: true, mustBe: true), s_search, 1 },
        { "count", call => Count(call), s_search, 1 },
        { "join", Join, ["iterable"], 1 },
        { "format", Format },
        { "zfill", call => ZeroFill(call.Budget, Self(call), call.Integer(0, 0)), ["width"], 1 },
        { "ljust", call => Pad(call.Budget, Self(call), call.Integer(0, 0), call.String(1, " "), 0), s_width, 1 },
        { "rjust", call => Pad(call.Budget, Self(call), call.Integer(0, 0), call.String(1, " "), 1), s_width, 1 },
        { "center", call => Pad(call.Budget, Self(call), call.Integer(0, 0), call.String(1, " "), 0.5), s_width, 1 },
    };

    static StringMethods()
    {
        s_all.AddPlain("lower casefold", call => PythonString.Lower(Self(call)));
        s_all.AddPlain("upper", call => PythonString.Upper(Self(call)));
        s_all.AddPlain("title", call => PythonString.Title(Self(call)));
        s_all.AddPlain("capitalize", call => PythonString.Capitalize(Self(call)));
        s_all.AddPlain("swapcase", call => string.Concat(Self(call).Select(c => char.IsUpper(c) ? char.ToLowerInvariant(c) : char.ToUpperInvariant(c))));
        s_all.AddPlain("isupper", call => Tests.IsCased(Self(call), char.IsUpper, char.IsLower));
        s_all.AddPlain("islower", call => Tests.IsCased(Self(call), char.IsLower, char.IsUpper));
        s_all.AddPlain("isdigit isdecimal isnumeric", call => All(call, char.IsDigit));
        s_all.AddPlain("isalpha", call => All(call, char.IsLetter));
        s_all.AddPlain("isalnum", call => All(call, char.IsLetterOrDigit));
        s_all.AddPlain("isspace", call => All(call, PythonString.IsSpace));
    }

    /// <summary>A method, or null if strings have none of this name here.</summary>
    public static Function? Find(string name) => s_all.GetValueOrDefault(name);

    /// <summary>Takes characters from a text's ends.</summary>
    /// <param name="text">The text.</param>
    /// <param name="chars">Which characters; white space if null.</param>
    /// <param name="start">Whether from its start.</param>
    /// <param name="end">Whether from its end.</param>
    public static string Strip(string text, string? chars, bool start, bool end)
    {
        if (chars is { Length: 0 })
        {
            return text;
        }

        char[] set = chars?.ToCharArray() ?? PythonString.Spaces;
        text = start ? text.TrimStart(set) : text;
        return end ? text.TrimEnd(set) : text;
    }

    /// <summary><c>str.replace</c>.</summary>
    public static string Replace(Budget budget, string text, string old, string replacement, long count)
    {
        if (count == 0)
        {
            return text;
        }

        StringBuilder result = new();
        int at = 0;
        if (old.Length == 0)
        {
            // Python puts the replacement in front of each character, and at the end.
            string[] characters = [.. PythonString.Characters(text)];
            for (int i = 0; i <= characters.Length; i++, count--)
            {
                budget.Spend(1);
                result.Append(count != 0 ? replacement : "").Append(i < characters.Length ? characters[i] : "");
                budget.SpendLength(count != 0 ? replacement.Length : 0);
                count = count == 0 ? 1 : count;
            }

            return result.ToString();
        }

        for (int found; count != 0 && (found = text.IndexOf(old, at, StringComparison.Ordinal)) >= 0; count--)
        {
            budget.SpendLength((long)result.Length > 1 << 26 ? result.Length : replacement.Length + 32);
            result.Append(text, at, found - at).Append(replacement);
            at = found + old.Length;
        }

        return result.Append(text, at, text.Length - at).ToString();
    }

    /// <summary>Fills a text up to a width.</summary>
    /// <param name="budget">Bounds the work.</param>
    /// <param name="text">The text.</param>
    /// <param name="width">Characters that it is to have.</param>
    /// <param name="fill">What it is filled with.</param>
    /// <param name="left">Share of it on the left.</param>
    public static string Pad(Budget budget, string text, long width, string fill, double left)
    {
        long missing = width - PythonString.Length(text);
        if (missing <= 0)
        {
            return text;
        }

        if (fill.Length != 1)
        {
            throw new JinjaException("the fill character must be exactly one character long.");
        }

        budget.SpendLength(missing);
        // As str.center divides an odd number.
        long before = left == 0.5 ? (missing / 2) + (missing & width & 1) : left == 1 ? missing : 0;
        return new string(fill[0], (int)before) + text + new string(fill[0], (int)(missing - before));
    }

    /// <summary>Words between white space.</summary>
    public static IEnumerable<string> Words(string text) => text.Split(PythonString.Spaces, StringSplitOptions.RemoveEmptyEntries);

    private static string Self(Invocation call) => (string)call.Self!;

    private static string? Chars(Invocation call) => call.Has(0) ? call.String(0) : null;

    private static bool All(Invocation call, Func<char, bool> test) => Self(call).Length > 0 && Self(call).All(test);

    private static JinjaList Split(Invocation call, bool fromEnd)
    {
        string text = Self(call);
        long most = call.Integer(1, -1);
        most = most < 0 ? long.MaxValue : most;
        if (call.Has(0) && call.String(0).Length == 0)
        {
            throw new JinjaException("empty separator.");
        }

        List<object?> parts = call.Has(0) ? SplitAt(call, text, call.String(0), most, fromEnd) : SplitAtSpaces(text, most, fromEnd);
        call.Budget.SpendLength(parts.Count * 32L);
        return new JinjaList(parts);
    }

    private static List<object?> SplitAt(Invocation call, string text, string separator, long most, bool fromEnd)
    {
        List<object?> parts = [];
        while (parts.Count < most)
        {
            call.Budget.Spend(1);
            int at = fromEnd ? text.LastIndexOf(separator, StringComparison.Ordinal) : -1;
            if (!fromEnd)
            {
                return [.. text.Split(separator, (int)Math.Min(most, int.MaxValue - 1) + 1)];
            }

            if (at < 0)
            {
                break;
            }

            call.Budget.SpendLength(text.Length);
            parts.Insert(0, text[(at + separator.Length)..]);
            text = text[..at];
        }

        parts.Insert(0, text);
        return parts;
    }

    private static List<object?> SplitAtSpaces(string text, long most, bool fromEnd)
    {
        List<object?> parts = [.. Words(text)];
        if (parts.Count <= most)
        {
            return parts;
        }

        // The rest keeps its inner white space.
        ReadOnlySpan<char> rest = text.AsSpan().Trim(PythonString.Spaces);
        for (int i = 0; i < most; i++)
        {
            int length = ((string)parts[fromEnd ? parts.Count - 1 - i : i]!).Length;
            rest = fromEnd ? rest[..^length].TrimEnd(PythonString.Spaces) : rest[length..].TrimStart(PythonString.Spaces);
        }

        string left = (fromEnd ? rest : text.AsSpan()[(text.Length - rest.Length - (text.Length - text.AsSpan().TrimEnd(PythonString.Spaces).Length))..]).ToString();
        if (fromEnd)
        {
            int spaces = text.Length - text.AsSpan().TrimStart(PythonString.Spaces).Length;
            return [text[..(spaces + rest.Length)], .. parts.TakeLast((int)most)];
        }

        return [.. parts.Take((int)most), left];
    }

    private static JinjaTuple Partition(Invocation call, bool last)
    {
        (string text, string separator) = (Self(call), call.String(0));
        int at = separator.Length == 0 ? throw new JinjaException("empty separator.")
            : last ? text.LastIndexOf(separator, StringComparison.Ordinal) : text.IndexOf(separator, StringComparison.Ordinal);
        return at >= 0 ? new JinjaTuple([text[..at], separator, text[(at + separator.Length)..]])
            : new JinjaTuple(last ? ["", "", text] : [text, "", ""]);
    }

    // The part between the arguments 'start' and 'end', and where it begins.
    private static (string Text, int Start) Part(Invocation call)
    {
        string text = Self(call);
        if (!call.Has(1) && !call.Has(2))
        {
            return (text, 0);
        }

        int length = PythonString.Length(text);
        int start = PythonString.ToUnits(text, Position(call.Integer(1, 0)));
        int end = PythonString.ToUnits(text, Position(call.Integer(2, length)));
        return (start <= end ? text[start..end] : "", start);

        int Position(long bound) => (int)Math.Clamp(bound < 0 ? bound + length : bound, 0, length);
    }

    private static bool HasAtEnd(Invocation call, Func<string, string, bool> has)
    {
        string text = Part(call).Text;
        return call.Values[0] is JinjaTuple parts
            ? parts.Items.Any(part => has(text, part as string ?? throw new JinjaException("expected a tuple of strings.")))
            : has(text, call.String(0));
    }

    private static long Find(Invocation call, bool last, bool mustBe)
    {
        (string text, int start) = Part(call);
        int at = last ? text.LastIndexOf(call.String(0), StringComparison.Ordinal) : text.IndexOf(call.String(0), StringComparison.Ordinal);
        return at < 0 && mustBe ? throw new JinjaException("substring not found.")
            : at < 0 ? -1L : (long)PythonString.FromUnits(Self(call), start + at);
    }

    private static long Count(Invocation call)
    {
        (string text, string part) = (Part(call).Text, call.String(0));
        return part.Length == 0 ? PythonString.Length(text) + 1L : text.AsSpan().Count(part);
    }

    private static string Join(Invocation call)
    {
        string[] parts = [.. Operators.Iterate(call.Values[0]).Select((part, i) => part as string
            ?? throw new JinjaException($"sequence item {i}: expected str instance, {PythonText.TypeName(part)} found."))];
        call.Budget.SpendLength(parts.Sum(part => (long)part.Length + Self(call).Length));
        return string.Join(Self(call), parts);
    }

    private static string ZeroFill(Budget budget, string text, long width)
    {
        string sign = text.StartsWith('-') || text.StartsWith('+') ? text[..1] : "";
        return sign + Pad(budget, text[sign.Length..], width - sign.Length, "0", 1);
    }

    // Fields without a format: {}, {0}, {name}.
    private static string Format(Invocation call)
    {
        StringBuilder result = new();
        string text = Self(call);
        int next = 0;
        for (int i = 0; i < text.Length; i++)
        {
            char c = text[i];
            if (c is '{' or '}' && i + 1 < text.Length && text[i + 1] == c)
            {
                result.Append(c);
                i++;
                continue;
            }

            if (c is not ('{' or '}'))
            {
                result.Append(c);
                continue;
            }

            int end = text.IndexOf('}', i);
            string field = c == '{' && end > i ? text[(i + 1)..end] : throw new JinjaException("single '{' or '}' in a format string.");
            object? value;
            if (field.Length == 0 || field.All(char.IsAsciiDigit))
            {
                int at = field.Length == 0 ? next++ : int.TryParse(field, out int number) ? number : int.MaxValue;
                value = at < call.All.Positional.Count ? call.All.Positional[at] : throw new JinjaException($"format has no argument {at}.");
            }
            else if (!call.All.Named.TryGetValue(field, out value))
            {
                throw new JinjaException($"the field '{{{field}}}' of format has no argument, or is of a kind that is not supported.");
            }

            string written = PythonText.Str(call.Budget, value);
            call.Budget.SpendLength(written.Length);
            result.Append(written);
            i = end;
        }

        return result.ToString();
    }
}
