using System.Runtime.InteropServices;

namespace Mustafar.Models.Generation;

/// <summary>How a text's tokens are chosen, and which were.</summary>
/// <remarks>Used for one text: where it is continued, the draws and the penalties go on.</remarks>
public sealed class Sampler
{
    private readonly List<int> _prompt = [];
    private readonly List<int> _chosen = [];

    /// <summary>Makes a sampler of a text of which nothing has been chosen.</summary>
    /// <param name="parameters">How to choose.</param>
    public Sampler(SamplingParameters parameters)
    {
        ArgumentNullException.ThrowIfNull(parameters);
        Parameters = parameters;
    }

    internal SamplingParameters Parameters { get; }

    /// <summary>Tokens of the text that were not chosen; some may be there twice.</summary>
    internal ReadOnlySpan<int> Prompt => CollectionsMarshal.AsSpan(_prompt);

    /// <summary>Tokens that were chosen.</summary>
    internal ReadOnlySpan<int> Chosen => CollectionsMarshal.AsSpan(_chosen);

    /// <summary>Tells of tokens that the text has without its being asked, which the repetition penalty counts.</summary>
    internal void AddPrompt(IEnumerable<int> tokens) => _prompt.AddRange(tokens);

    internal void Add(int token) => _chosen.Add(token);
}
