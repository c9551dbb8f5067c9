namespace Mustafar.Models.Generation;

/// <summary>A continuation in a beam search: another continuation plus a token.</summary>
internal sealed class Beam
{
    private readonly Beam? _previous;

    private Beam(Beam? previous, int parent, int token, double logProbability)
    {
        _previous = previous;
        Parent = parent;
        Token = token;
        LogProbability = logProbability;
        Length = previous is null ? 0 : previous.Length + 1;
    }

    /// <summary>The empty continuation.</summary>
    public static Beam Empty { get; } = new(null, 0, -1, 0);

    /// <summary>Index of the beam of the previous step that it continues.</summary>
    public int Parent { get; }

    /// <summary>Its last token.</summary>
    public int Token { get; }

    /// <summary>Natural logarithm of its probability.</summary>
    public double LogProbability { get; }

    /// <summary>Number of its tokens.</summary>
    public int Length { get; }

    /// <summary>All of its tokens.</summary>
    public int[] Tokens
    {
        get
        {
            int[] tokens = new int[Length];
            for (Beam beam = this; beam._previous is not null; beam = beam._previous)
            {
                tokens[beam.Length - 1] = beam.Token;
            }

            return tokens;
        }
    }

    /// <summary>This continuation plus a token.</summary>
    /// <param name="parent">Index of this beam.</param>
    /// <param name="token">The token.</param>
    /// <param name="logProbability">Natural logarithm of the token's probability.</param>
    public Beam With(int parent, int token, double logProbability) => new(this, parent, token, LogProbability + logProbability);
}
