using System.Globalization;
using System.Text.RegularExpressions;

namespace Mustafar.Models.Tokenizer;

/// <summary>Splits a text into the pieces within which a tokenizer merges, by the regular expression of its file.</summary>
/// <remarks>
/// .NET matches UTF-16 units, but the expression means whole characters. So it is matched against a copy in which each character outside
/// the Basic Multilingual Plane is replaced by one unit of the same general category, and the matches are mapped back.
/// </remarks>
internal sealed class PieceSplitter
{
    private static readonly char[] s_standIns = FindStandIns();

    private static readonly TimeSpan s_timeLimit = TimeSpan.FromSeconds(2);

    private readonly SplitRule _rule;
    private readonly Regex _regex;

    /// <summary>Makes a splitter.</summary>
    /// <param name="rule">What it does.</param>
    /// <exception cref="ArgumentException">Its pattern is not an expression that .NET understands.</exception>
    public PieceSplitter(SplitRule rule)
    {
        _rule = rule;
        _regex = MakeRegex(rule.Pattern);
    }

    /// <summary>The pieces of a text, in order. None is empty.</summary>
    /// <param name="text">The text.</param>
    /// <param name="cancellationToken">Cancels between pieces.</param>
    /// <exception cref="TimeoutException">One piece takes too long: the expression backtracks excessively in this text.</exception>
    public List<Range> Split(string text, CancellationToken cancellationToken = default)
    {
        try
        {
            return SplitInTime(text, cancellationToken);
        }
        catch (RegexMatchTimeoutException exception)
        {
            throw new TimeoutException(
                $"The pre-tokenizer's expression takes more than {s_timeLimit.TotalSeconds} s for one piece of this text: {exception.Pattern}",
                exception);
        }
    }

    // Without backtracking no expression explodes, but one with lookahead, as most have, can't be matched that way.
    private static Regex MakeRegex(string pattern)
    {
        try
        {
            return new Regex(pattern, RegexOptions.CultureInvariant | RegexOptions.NonBacktracking);
        }
        catch (NotSupportedException)
        {
            return new Regex(pattern, RegexOptions.CultureInvariant | RegexOptions.Compiled, s_timeLimit);
        }
    }

    private List<Range> SplitInTime(string text, CancellationToken cancellationToken)
    {
        int[]? origins = null;
        string matched = text.AsSpan().IndexOfAnyInRange('\uD800', '\uDFFF') < 0 ? text : ReplacePairs(text, out origins);
        List<Part> parts = [];
        int end = 0;
        foreach (ValueMatch match in _regex.EnumerateMatches(matched))
        {
            cancellationToken.ThrowIfCancellationRequested();
            Add(end, match.Index, isMatch: false);
            Add(match.Index, match.Index + match.Length, isMatch: true);
            end = match.Index + match.Length;
        }

        Add(end, matched.Length, isMatch: false);
        return [.. Joined(parts).Select(part => origins is null ? part.Start..part.End : origins[part.Start]..origins[part.End])];

        void Add(int from, int to, bool isMatch)
        {
            if (from < to)
            {
                parts.Add(new Part(from, to, isMatch != _rule.Inverts));
            }
        }
    }

    // Applies the behavior to matches and to what is between them.
    private IEnumerable<Part> Joined(List<Part> parts)
    {
        switch (_rule.Behavior)
        {
            case SplitBehavior.Isolated:
                return parts;
            case SplitBehavior.Removed:
                return parts.Where(part => !part.IsMatch);
            case SplitBehavior.MergedWithNext:
                List<Part> backwards = [];
                for (int i = parts.Count - 1; i >= 0; i--)
                {
                    bool joins = parts[i].IsMatch && i + 1 < parts.Count && !parts[i + 1].IsMatch;
                    Append(backwards, parts[i], joins);
                }

                backwards.Reverse();
                return backwards;
            default:
                List<Part> forwards = [];
                for (int i = 0; i < parts.Count; i++)
                {
                    bool joins = i > 0 && (_rule.Behavior == SplitBehavior.Contiguous
                        ? parts[i].IsMatch == parts[i - 1].IsMatch
                        : parts[i].IsMatch && !parts[i - 1].IsMatch);
                    Append(forwards, parts[i], joins);
                }

                return forwards;
        }

        static void Append(List<Part> joined, Part part, bool joins)
        {
            if (joins)
            {
                Part last = joined[^1];
                joined[^1] = last with { Start = Math.Min(last.Start, part.Start), End = Math.Max(last.End, part.End) };
            }
            else
            {
                joined.Add(part);
            }
        }
    }

    // origins[i] is the index in the text of unit i of the result.
    private static string ReplacePairs(string text, out int[] origins)
    {
        char[] units = new char[text.Length];
        List<int> starts = new(text.Length + 1);
        int i = 0;
        while (i < text.Length)
        {
            bool isPair = char.IsSurrogatePair(text, i);
            units[starts.Count] = isPair ? s_standIns[(int)CharUnicodeInfo.GetUnicodeCategory(char.ConvertToUtf32(text, i))] : text[i];
            starts.Add(i);
            i += isPair ? 2 : 1;
        }

        string replaced = new(units, 0, starts.Count);
        starts.Add(text.Length);
        origins = [.. starts];
        return replaced;
    }

    private readonly record struct Part(int Start, int End, bool IsMatch);

    // Above Latin-1, so that no expression names such a unit itself.
    private static char[] FindStandIns()
    {
        char[] standIns = new char[Enum.GetValues<UnicodeCategory>().Length];
        for (int c = char.MaxValue; c > 0xFF; c--)
        {
            standIns[(int)CharUnicodeInfo.GetUnicodeCategory((char)c)] = (char)c;
        }

        return standIns;
    }
}
