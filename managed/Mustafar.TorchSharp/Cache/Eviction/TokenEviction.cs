namespace Mustafar;

/// <summary>Which tokens a cache lets go of, so that a sequence has no more than a number of them.</summary>
/// <remarks>
/// <para>
/// Once a sequence has <see cref="Capacity"/> and a group of tokens (<see cref="MustafarOptions.GroupSize"/>) or more after a step, it is
/// brought down to <see cref="Capacity"/>: the others are removed from the cache, their pages are free, and
/// <see cref="ModelKeyValueCache.LengthOf"/> is shorter. Tokens keep the positions that they were encoded with, and
/// <see cref="ModelKeyValueCache.PositionOf"/> counts on. A prompt attends to itself before anything is removed. What stays is pruned and
/// stored as the options say.
/// </para>
/// <para>
/// Each KV head of each layer keeps its own tokens, as many as the others. Scores are those of attention over what the cache stores.
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

    /// <summary>How tokens are chosen.</summary>
    public TokenEvictionMethod Method { get; }

    /// <summary>Tokens that a sequence is brought down to, attention sinks and recent tokens included.</summary>
    public int Capacity { get; }

    /// <summary>The latest tokens, which always stay.</summary>
    public int RecentTokens { get; }

    /// <summary>Neighbouring tokens over which scores are pooled, an odd number; 1 for none.</summary>
    public int KernelSize { get; }

    /// <summary>StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): the first tokens and the latest ones stay.</summary>
    /// <remarks>Unlike with <see cref="MustafarOptions.SlidingWindow"/>, prompts attend to all of themselves. Positions do not shift.</remarks>
    /// <param name="capacity">Tokens that stay.</param>
    /// <param name="firstTokens">How many of them are the first ones.</param>
    /// <exception cref="ArgumentOutOfRangeException">There are no first or no latest ones among so many.</exception>
    public static TokenEviction StreamingLlm(int capacity, int firstTokens = 4)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(firstTokens, 1);
        return new TokenEviction(TokenEvictionMethod.FirstAndRecent, capacity, capacity - firstTokens, kernelSize: 1);
    }

    /// <summary>
    /// SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469): beside the latest tokens those stay to which the queries of the latest tokens
    /// attend most. A token's score is the mean of its attention weights over those queries and the query heads of a KV head, and then the
    /// largest among its neighbours.
    /// </summary>
    /// <remarks>In the paper it is applied once, to the prompt. Here it is applied again as the sequence grows, which bounds its length.</remarks>
    /// <param name="capacity">Tokens that stay.</param>
    /// <param name="window">The latest tokens: they stay, and their queries choose.</param>
    /// <param name="kernelSize">Neighbouring tokens over which scores are pooled, an odd number.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public static TokenEviction SnapKv(int capacity, int window = 32, int kernelSize = 7) =>
        new(TokenEvictionMethod.RecentAttention, capacity, window, kernelSize);

    /// <summary>
    /// H2O (Zhang et al., NeurIPS 2023, arXiv 2306.14048): beside the latest tokens those stay that received the most attention from all
    /// queries so far, the heavy hitters. A token's score is the sum of its attention weights, the mean over the query heads of a KV head.
    /// </summary>
    /// <remarks>In the paper a token is removed in each step. Here a group is removed at a time, which needs no attention weights of single
    /// steps.</remarks>
    /// <param name="capacity">Tokens that stay.</param>
    /// <param name="recentTokens">The latest tokens among them; half of them if null, as in the paper.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public static TokenEviction HeavyHitters(int capacity, int? recentTokens = null) =>
        new(TokenEvictionMethod.AccumulatedAttention, capacity, recentTokens ?? capacity / 2, kernelSize: 1);

    /// <summary>Whether tokens of a cache can be removed: what other selections gather of tokens does not follow those that are kept.</summary>
    internal static bool GoesWith(MustafarOptions options) =>
        options.KeySelection == KeySelection.Magnitude && options.ValueSelection == ValueSelection.Magnitude;

    /// <summary>Refuses options of a cache that it does not go with.</summary>
    /// <exception cref="ArgumentException">It does not.</exception>
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

/// <summary>How the tokens are chosen that stay in a cache.</summary>
public enum TokenEvictionMethod
{
    /// <summary>The first and the latest ones: StreamingLLM.</summary>
    FirstAndRecent,

    /// <summary>The latest ones, and those to which their queries attend: SnapKV.</summary>
    RecentAttention,

    /// <summary>The latest ones, and those that received the most attention so far: H2O.</summary>
    AccumulatedAttention,
}
