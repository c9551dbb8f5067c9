using Mustafar.Examples.Llama.Model;

namespace Mustafar.Examples.Llama.Generation;

/// <summary>Continuations of a text, and what they were made with.</summary>
/// <param name="Hypotheses">The continuations, the best first.</param>
/// <param name="CachedTokens">Tokens of the longest sequence in the caches.</param>
/// <param name="Memory">What the caches of the text and of the continuations occupied at the end, shared pages counted once. The dense
/// bytes to compare with are those of the continuations, each with the text before it.</param>
public sealed record SearchResult(IReadOnlyList<Hypothesis> Hypotheses, int CachedTokens, KeyValueCacheMemory Memory)
{
    /// <summary>Describes continuations.</summary>
    /// <param name="hypotheses">The continuations, the best first.</param>
    /// <param name="text">Caches of the text.</param>
    /// <param name="forks">Caches of the continuations; null if none was needed.</param>
    internal static SearchResult Of(IReadOnlyList<Hypothesis> hypotheses, ModelCache text, ModelCache? forks)
    {
        KeyValueCacheMemory memory = text.Memory;
        if (forks is not null)
        {
            KeyValueCacheMemory sequences = forks.Memory;
            memory = (memory + sequences) with { DenseBytes = sequences.DenseBytes, Fp16Bytes = sequences.Fp16Bytes };
        }

        return new SearchResult(hypotheses, (forks ?? text).Length, memory);
    }
}
