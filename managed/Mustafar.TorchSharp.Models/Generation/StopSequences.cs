using System.Text;

namespace Mustafar.Models.Generation;

/// <summary>Ends a streamed text when one of several sequences appears in it.</summary>
/// <param name="sequences">The sequences, none empty.</param>
internal sealed class StopSequences(IReadOnlyList<string> sequences)
{
    private readonly StringBuilder _held = new();

    /// <summary>Checks a caller's sequences.</summary>
    /// <param name="sequences">The sequences; null for none.</param>
    /// <param name="parameter">Name of the caller's parameter.</param>
    /// <exception cref="ArgumentException">One is empty.</exception>
    public static void Check(IReadOnlyList<string>? sequences, string parameter)
    {
        if (sequences?.Any(string.IsNullOrEmpty) ?? false)
        {
            throw new ArgumentException("Expected non-empty stop sequences.", parameter);
        }
    }

    /// <summary>Whether a sequence appeared.</summary>
    public bool IsFound { get; private set; }

    /// <summary>Takes the next part of the text.</summary>
    /// <returns>What can't be part of a sequence: everything before the first sequence, or, until one appears, before what may begin
    /// one.</returns>
    public string Append(string part)
    {
        if (IsFound)
        {
            return "";
        }

        _held.Append(part);
        string text = _held.ToString();
        int found = -1;
        foreach (string sequence in sequences)
        {
            int index = text.IndexOf(sequence, StringComparison.Ordinal);
            found = index >= 0 && (found < 0 || index < found) ? index : found;
        }

        IsFound = found >= 0;
        int safe = IsFound ? found : text.Length - sequences.Select(sequence => LongestBeginning(text, sequence)).DefaultIfEmpty(0).Max();
        _held.Remove(0, safe);
        return text[..safe];
    }

    /// <summary>Ends the text.</summary>
    /// <returns>What was held back, unless a sequence appeared.</returns>
    public string Finish() => IsFound ? "" : _held.ToString();

    // Characters at the end of a text that begin a sequence.
    private static int LongestBeginning(string text, string sequence)
    {
        for (int length = Math.Min(text.Length, sequence.Length - 1); length > 0; length--)
        {
            if (string.CompareOrdinal(text, text.Length - length, sequence, 0, length) == 0)
            {
                return length;
            }
        }

        return 0;
    }
}
