using System.CommandLine;
using System.Text.RegularExpressions;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Errors as the program reports them: in one line, in terms of the command line.</summary>
internal static partial class ErrorMessage
{
    private const int Longest = 1000;

    // A typing error differs by at most this many letters.
    private const int LargestDistance = 2;

    /// <summary>The message of an exception.</summary>
    public static string Of(Exception exception)
    {
        // Parameter names belong to the source code; .NET puts the value on a second line.
        string message = exception is ArgumentException ? ParameterNote().Replace(exception.Message, "") : exception.Message;
        return OneLine(exception is ArgumentOutOfRangeException { ActualValue: object value }
            ? $"{message.TrimEnd('.')}, but got {value}."
            : message);
    }

    /// <summary>A text on one line, shortened if it is very long.</summary>
    public static string OneLine(string text)
    {
        // torch's messages end with a stack trace.
        string line = Whitespace().Replace(text.Split("\nException raised from", 2)[0], " ").Trim();
        return line.Length > Longest ? line[..Longest] + "…" : line;
    }

    /// <summary>What is wrong with a command line, and what may have been meant.</summary>
    public static string OfUsage(ParseResult result)
    {
        string message = result.Errors[0].Message;
        if (result.UnmatchedTokens is not [string unknown, ..])
        {
            return message;
        }

        Command command = result.CommandResult.Command;
        if (command.Subcommands.Count > 0)
        {
            string[] commands = [.. command.Subcommands.Select(item => item.Name)];
            return $"'{unknown}' is not a command{Meant(unknown, commands)}; the commands are {string.Join(", ", commands)}.";
        }

        return unknown.StartsWith('-')
            ? $"{command.Name} has no option '{unknown}'{Meant(unknown, command.Options.Select(item => item.Name))}."
            : $"{command.Name}: expected an option, but got '{unknown}'; text with spaces needs quotes.";
    }

    private static string Meant(string word, IEnumerable<string> known)
    {
        (string nearest, int distance) = known.Select(name => (name, Distance(word, name))).MinBy(item => item.Item2);
        return distance <= LargestDistance ? $"; did you mean '{nearest}'?" : "";
    }

    // Levenshtein's: letters to insert, delete or change.
    private static int Distance(string a, string b)
    {
        int[] row = [.. Enumerable.Range(0, b.Length + 1)];
        for (int i = 1; i <= a.Length; i++)
        {
            int diagonal = row[0];
            row[0] = i;
            for (int j = 1; j <= b.Length; j++)
            {
                int changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
                diagonal = row[j];
                row[j] = Math.Min(changed, Math.Min(row[j], row[j - 1]) + 1);
            }
        }

        return row[^1];
    }

    [GeneratedRegex(@" \(Parameter '[^']*'\)(\s*Actual value was .*)?", RegexOptions.Singleline)]
    private static partial Regex ParameterNote();

    [GeneratedRegex(@"\s+")]
    private static partial Regex Whitespace();
}
