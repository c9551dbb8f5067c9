namespace Mustafar;

/// <summary>Which tokens a cache removes to bound the length of a sequence.</summary>
/// <remarks>
/// <para>
/// Once a sequence has <see cref="Capacity"/> plus a group of tokens (<see cref="MustafarOptions.GroupSize"/>) or more after a step, it is
/// reduced to <see cref="Capacity"/>: the other tokens are removed from the cache, their pages are freed, and
/// <see cref="ModelKeyValueCache.LengthOf"/> gets smaller. Tokens keep the positions that they were encoded with, and
/// <see cref="ModelKeyValueCache.PositionOf"/> keeps counting. A prompt attends to itself before anything is removed. The remaining tokens
/// are pruned and stored as the options require.
/// </para>
/// <para>
/// Each KV head of each layer keeps its own tokens, all of them equally many. Scores come from attention over what the cache stores.
/// </para>
/// </remarks>
public sealed record TokenEviction
{
    private TokenEviction(TokenEvictionMethod method, int capacity, int recentTokens, int kernelSize)
    {
        if (capacity <= recentTokens || recentTokens < 1)
        {
            throw new ArgumentOutOfRangeException(
                nameof(capacity), capacity, $"Expected a capacity above the number of recent tokens, and at least 1 of those, but got {recentTokens} recent tokens.");
        }

        if (kernelSize < 1 || kernelSize % 2 == 0)
        {
            throw new ArgumentOutOfRangeException(nameof(kernelSize), kernelSize, "Expected an odd number of tokens.");
        }

        (Method, Capacity, RecentTokens, KernelSize) = (method, capacity, recentTokens, kernelSize);
    }

    /// <summary>How the remaining tokens are chosen.</summary>
    public TokenEvictionMethod Method { get; }

    /// <summary>Number of tokens that a sequence is reduced to, including attention sinks and recent tokens.</summary>
    public int Capacity { get; }

    /// <summary>Number of latest tokens, which always stay.</summary>
    public int RecentTokens { get; }

    /// <summary>Number of neighbouring tokens over which scores are pooled, an odd number; 1 for no pooling.</summary>
    public int KernelSize { get; }

    /// <summary>StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): the first tokens and the latest ones stay.</summary>
    /// <remarks>Unlike with <see cref="MustafarOptions.SlidingWindow"/>, prompts attend to all of themselves. Positions are not
    /// shifted.</remarks>
    /// <param name="capacity">Number of tokens that stay.</param>
    /// <param name="firstTokens">How many of them are first tokens.</param>
    /// <exception cref="ArgumentOutOfRangeException">The capacity leaves no first or no latest tokens.</exception>
    public static TokenEviction StreamingLlm(int capacity, int firstTokens = 4)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(firstTokens, 1);
        return new TokenEviction(TokenEvictionMethod.FirstAndRecent, capacity, capacity - firstTokens, kernelSize: 1);
    }

    /// <summary>
    /// SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469): in addition to the latest tokens, those stay to which the queries of the latest
    /// tokens attend most. A token's score is the mean of its attention weights over those queries and the query heads of a KV head, and
    /// then the maximum over its neighbours.
    /// </summary>
    /// <remarks>The paper applies it once, to the prompt. Here it is applied again as the sequence grows, which bounds its
    /// length.</remarks>
    /// <param name="capacity">Number of tokens that stay.</param>
    /// <param name="window">Number of latest tokens: they stay, and their queries choose the others.</param>
    /// <param name="kernelSize">Number of neighbouring tokens over which scores are pooled, an odd number.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public static TokenEviction SnapKv(int capacity, int window = 32, int kernelSize = 7) =>
        new(TokenEvictionMethod.RecentAttention, capacity, window, kernelSize);

    /// <summary>
    /// H2O (Zhang et al., NeurIPS 2023, arXiv 2306.14048): in addition to the latest tokens, those stay that have received the most
    /// attention from all queries so far, the heavy hitters. A token's score is the sum of its attention weights, averaged over the query
    /// heads of a KV head.
    /// </summary>
    /// <remarks>The paper removes one token in each step. Here a group is removed at a time, which does not need the attention weights of
    /// single steps.</remarks>
    /// <param name="capacity">Number of tokens that stay.</param>
    /// <param name="recentTokens">How many of them are latest tokens; half of them if null, as in the paper.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public static TokenEviction HeavyHitters(int capacity, int? recentTokens = null) =>
        new(TokenEvictionMethod.AccumulatedAttention, capacity, recentTokens ?? capacity / 2, kernelSize: 1);

    /// <summary>Whether tokens of a cache can be removed: what other selections gather about tokens does not follow the kept
    /// ones.</summary>
    internal static bool GoesWith(MustafarOptions options) =>
        options.KeySelection == KeySelection.Magnitude && options.ValueSelection == ValueSelection.Magnitude;

    /// <summary>Checks that the options of a cache are compatible.</summary>
    /// <exception cref="ArgumentException">They are not.</exception>
    internal void Check(MustafarOptions options)
    {
        if (options.SlidingWindow is int window)
        {
            throw new ArgumentException(
                $"Expected layers that see all tokens with {nameof(MustafarOptions.Eviction)}, but there is a sliding window of {window} tokens.",
                nameof(options));
        }

        if (!GoesWith(options))
        {
            throw new ArgumentException(
                $"Expected channels chosen by magnitude with {nameof(MustafarOptions.Eviction)}, but got '{options.KeySelection.Name}' for keys and '{options.ValueSelection.Name}' for values.",
                nameof(options));
        }

        if (Capacity - RecentTokens < options.SinkTokens)
        {
            throw new ArgumentException(
                $"Expected room for the {options.SinkTokens} attention sinks next to the recent tokens of {nameof(MustafarOptions.Eviction)}, but {RecentTokens} of {Capacity} tokens are recent.",
                nameof(options));
        }
    }
}

/// <summary>How the tokens that stay in a cache are chosen.</summary>
public enum TokenEvictionMethod
{
    /// <summary>The first and the latest tokens: StreamingLLM.</summary>
    FirstAndRecent,

    /// <summary>The latest tokens, and those to which their queries attend: SnapKV.</summary>
    RecentAttention,

    /// <summary>The latest tokens, and those that have received the most attention: H2O.</summary>
    AccumulatedAttention,
}
