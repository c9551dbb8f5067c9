namespace Mustafar.Models.Tokenizer;

/// <summary>How the matches of a splitting expression are used, with the names of tokenizer.json.</summary>
internal enum SplitBehavior
{
    /// <summary>Each match is a piece.</summary>
    Isolated,

    /// <summary>Matches are removed.</summary>
    Removed,

    /// <summary>Consecutive matches are one piece.</summary>
    Contiguous,

    /// <summary>A match ends the piece before it.</summary>
    MergedWithPrevious,

    /// <summary>A match begins the piece after it.</summary>
    MergedWithNext,
}

/// <summary>A step that splits a text into pieces.</summary>
/// <param name="Pattern">A regular expression.</param>
/// <param name="Behavior">How its matches are used.</param>
/// <param name="Inverts">Whether matches and the parts between them are swapped.</param>
internal sealed record SplitRule(string Pattern, SplitBehavior Behavior = SplitBehavior.Isolated, bool Inverts = false);
