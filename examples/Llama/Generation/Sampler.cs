using System.Runtime.InteropServices;

namespace Mustafar.Examples.Llama.Generation;

/// <summary>How a text's tokens are chosen, and which were.</summary>
/// <remarks>Used for one text: where it is continued, the draws and the penalties go on.</remarks>
public sealed class Sampler
{
    private readonly List<int> _chosen = [];

    /// <summary>Makes a sampler of a text of which nothing has been chosen.</summary>
    /// <param name="options">How to choose.</param>
    public Sampler(SamplingOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        Parameters = new SamplingParameters
        {
            Temperature = options.Temperature,
            TopK = options.TopK,
            TopP = options.TopP,
            FrequencyPenalty = options.FrequencyPenalty,
            PresencePenalty = options.PresencePenalty,
            Seed = unchecked((ulong)options.Seed),
        };
        HasPenalties = options is not { FrequencyPenalty: 0, PresencePenalty: 0 };
    }

    internal SamplingParameters Parameters { get; }

    internal bool HasPenalties { get; }

    /// <summary>Tokens that were chosen.</summary>
    internal ReadOnlySpan<int> Chosen => CollectionsMarshal.AsSpan(_chosen);

    internal void Add(int token) => _chosen.Add(token);
}
