using Mustafar.Models.Llama;

namespace Mustafar.Models.Generation;

/// <summary>Continuations of a text, and the memory that they took.</summary>
/// <param name="Hypotheses">The continuations, the best first.</param>
/// <param name="CachedTokens">Tokens of the longest sequence in the cache.</param>
/// <param name="Memory">The memory of the cache at the end, with the text and the continuations, which share pages. The dense bytes for
/// comparison are those of the continuations, each with the text before it.</param>
public sealed record SearchResult(IReadOnlyList<Hypothesis> Hypotheses, int CachedTokens, KeyValueCacheMemory Memory)
{
    /// <summary>Describes continuations.</summary>
    /// <param name="hypotheses">The continuations, the best first.</param>
    /// <param name="text">The text.</param>
    /// <param name="forks">The continuations; null if none was cached.</param>
    internal static SearchResult Of(IReadOnlyList<Hypothesis> hypotheses, ModelCache text, ModelCache? forks) =>
        new(hypotheses, (forks ?? text).Length, (forks ?? text).Memory);
}
