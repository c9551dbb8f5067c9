namespace Mustafar;

/// <summary>The state of one sequence of a cache: the same in all layers.</summary>
internal sealed class Sequence
{
    /// <summary>Tokens after the sinks.</summary>
    internal int Length { get; set; }

    /// <summary>How many of them are compressed.</summary>
    internal int Compressed { get; set; }

    /// <summary>Attention sinks, which come before all other tokens.</summary>
    internal int Sinks { get; set; }

    /// <summary>Position of the next token. It counts all earlier tokens, whether or not they are still stored.</summary>
    internal int Position { get; set; }

    /// <summary>Number of first tokens, including sinks, between which others were evicted: those after them are consecutive.</summary>
    internal int Scattered { get; set; }

    /// <summary>Number of pages released from the front, since no query sees them any more.</summary>
    internal int Released { get; set; }

    /// <summary>The pages that follow those, one for each compressed group.</summary>
    internal List<int> Pages { get; } = [];

    /// <summary>Number of dense tokens, without the sinks.</summary>
    internal int Dense => Length - Compressed;

    /// <summary>Number of tokens, including sinks.</summary>
    internal int Tokens => Sinks + Length;

    /// <summary>Place of the next page in the page table.</summary>
    internal int NextPlace => Released + Pages.Count;

    /// <summary>A sequence in the same state, with the same pages.</summary>
    internal Sequence Copy() => Copy(Pages);

    /// <summary>A sequence in the same state, with the same number of separate pages.</summary>
    internal Sequence Copy(IEnumerable<int> pages)
    {
        Sequence copy = new()
        {
            Length = Length, Compressed = Compressed, Sinks = Sinks, Position = Position, Scattered = Scattered, Released = Released,
        };
        copy.Pages.AddRange(pages);
        return copy;
    }
}
