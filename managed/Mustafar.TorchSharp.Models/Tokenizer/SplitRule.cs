namespace Mustafar.Models.Tokenizer;

/// <summary>What becomes of the matches of a splitting expression, by the names of tokenizer.json.</summary>
internal enum SplitBehavior
{
    /// <summary>Each match is a piece.</summary>
    Isolated,

    /// <summary>Matches are left out.</summary>
    Removed,

    /// <summary>Matches that follow each other are one piece.</summary>
    Contiguous,

    /// <summary>A match ends the piece before it.</summary>
    MergedWithPrevious,

    /// <summary>A match begins the piece after it.</summary>
    MergedWithNext,
}

/// <summary>A step that cuts a text into pieces.</summary>
/// <param name="Pattern">A regular expression.</param>
/// <param name="Behavior">What becomes of its matches.</param>
/// <param name="Inverts">Whether what lies between the matches counts as the matches, and they as what lies between.</param>
internal sealed record SplitRule(string Pattern, SplitBehavior Behavior = SplitBehavior.Isolated, bool Inverts = false);
