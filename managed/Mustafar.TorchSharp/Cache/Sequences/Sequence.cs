namespace Mustafar;

/// <summary>Where one sequence of a cache stands: the same in all layers.</summary>
internal sealed class Sequence
{
    /// <summary>Tokens after the sinks.</summary>
    internal int Length { get; set; }

    /// <summary>How many of them are compressed.</summary>
    internal int Compressed { get; set; }

    /// <summary>Attention sinks, which come before all other tokens.</summary>
    internal int Sinks { get; set; }

    /// <summary>Position of the next token. It counts all tokens that came before, whether they are still stored or not.</summary>
    internal int Position { get; set; }

    /// <summary>First tokens, sinks included, between which others were evicted: those after them follow one another.</summary>
    internal int Scattered { get; set; }

    /// <summary>Pages that were given back from the front, as no query sees them any more.</summary>
    internal int Released { get; set; }

    /// <summary>The pages that follow those, one for each compressed group.</summary>
    internal List<int> Pages { get; } = [];

    /// <summary>Tokens that are dense, without the sinks.</summary>
    internal int Dense => Length - Compressed;

    /// <summary>Tokens, sinks included.</summary>
    internal int Tokens => Sinks + Length;

    /// <summary>Place of the next page in the page table.</summary>
    internal int NextPlace => Released + Pages.Count;

    /// <summary>A sequence that stands where this one does, with the same pages.</summary>
    internal Sequence Copy() => Copy(Pages);

    /// <summary>A sequence that stands where this one does, with pages of its own, as many.</summary>
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
