using System.Runtime.InteropServices;

namespace Mustafar.Models.Generation;

/// <summary>How a text's tokens are chosen, and which ones were.</summary>
/// <remarks>Belongs to one text: when the text is continued, draws and penalties continue too.</remarks>
public sealed class Sampler
{
    private readonly List<int> _prompt = [];
    private readonly List<int> _chosen = [];

    /// <summary>Makes a sampler of a text without chosen tokens.</summary>
    /// <param name="parameters">How to choose.</param>
    public Sampler(SamplingParameters parameters)
    {
        ArgumentNullException.ThrowIfNull(parameters);
        Parameters = parameters;
    }

    internal SamplingParameters Parameters { get; }

    /// <summary>Tokens of the text that were not chosen; some may occur twice.</summary>
    internal ReadOnlySpan<int> Prompt => CollectionsMarshal.AsSpan(_prompt);

    /// <summary>Tokens that were chosen.</summary>
    internal ReadOnlySpan<int> Chosen => CollectionsMarshal.AsSpan(_chosen);

    /// <summary>Adds tokens that the text has but did not choose, for the repetition penalty.</summary>
    internal void AddPrompt(IEnumerable<int> tokens) => _prompt.AddRange(tokens);

    internal void Add(int token) => _chosen.Add(token);
}
