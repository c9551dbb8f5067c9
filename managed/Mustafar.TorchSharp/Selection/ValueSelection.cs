using static TorchSharp.torch;

namespace Mustafar;

/// <summary>How the kept channels of values are selected.</summary>
public sealed class ValueSelection : ChannelSelection
{
    private ValueSelection(string name, SelectionRule rule, Func<SelectionInput, Tensor>? function = null)
        : base(name, rule, function)
    {
    }

    /// <summary>Per token by magnitude, the default: in each value, the channels with the largest |v|. (Mustafar, arXiv 2505.22913.)</summary>
    /// <remarks>All channels of a token's value have the same weight in the output, so this is already output-aware.</remarks>
    public static ValueSelection Magnitude { get; } = new("magnitude", SelectionRule.Magnitude);

    /// <summary>
    /// Whole channels, the same ones in all tokens of a sequence and head: those with the largest ‖v‖ over the sequence's tokens before its
    /// first compression. (ThinK, arXiv 2407.21018, applied to values.)
    /// </summary>
    /// <remarks>A value that is 0 in a selected channel keeps another channel instead.</remarks>
    public static ValueSelection Structured { get; } = new("structured", SelectionRule.StructuredValues);

    /// <summary>
    /// Per channel by magnitude: in each channel, the ⌊32 · kept / head_dim⌋ tokens with the largest |v| out of every 32 consecutive ones.
    /// (Mustafar, arXiv 2505.22913: per-channel magnitude pruning.)
    /// </summary>
    /// <remarks>Tokens keep different numbers of channels; every 32 tokens take the same space.</remarks>
    public static ValueSelection PerChannel { get; } = new("per-channel", SelectionRule.PerChannel);

    /// <summary>
    /// Per channel, output-aware: in each channel, the ⌊32 · kept / head_dim⌋ tokens with the largest |v| · a out of every 32 consecutive ones.
    /// a is the attention that a token receives, an estimate of what its value adds to outputs. (Mustafar, arXiv 2505.22913.)
    /// </summary>
    /// <remarks>
    /// <para>
    /// The attention is that of the sequence's last 32 queries when the token is compressed, summed over them and over all query heads that
    /// read the KV head, with keys as they are stored. For a prompt in one step these are its last 32 queries. For tokens that come one by
    /// one they end with the query of the token that makes the group due, so with a recent window of 32 tokens they are the window's
    /// queries. If a step of several tokens compresses a group before its tokens attend, they end with the first of its queries. A token
    /// whose queries are unknown, as after <c>Truncate</c>, is weighted by magnitude alone.
    /// </para>
    /// <para>
    /// The cache keeps num_heads · 32 · head_dim numbers of queries for each sequence and layer, in forks and files too.
    /// <see cref="KeyValueCacheMemory"/> and <see cref="CacheUsage"/> count them. A byte budget does not: it is divided before the number of
    /// heads is known. Compressing a group reads all keys once.
    /// </para>
    /// </remarks>
    public static ValueSelection OutputAware { get; } = new("output-aware", SelectionRule.PerChannelOutputAware);

    /// <summary>In each value, the channels to which a function gives the largest scores.</summary>
    /// <inheritdoc cref="KeySelection.ByScores"/>
    public static ValueSelection ByScores(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new ValueSelection(name, SelectionRule.Scores, function);
    }

    /// <summary>The channels that a function selects, any number of each value.</summary>
    /// <inheritdoc cref="KeySelection.ByMask"/>
    public static ValueSelection ByMask(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new ValueSelection(name, SelectionRule.Mask, function);
    }

    /// <summary>All channels of each value, rewritten by a function when the value is compressed: simulates a format that does not exist.</summary>
    /// <remarks>
    /// This is for measuring quality: values take their full size, attention reads what the function returned, and the recent window is
    /// unchanged. It needs <see cref="MustafarOptions.ValueSparsity"/> 0 and <see cref="MustafarOptions.ValueBits"/> 16. Compressed tokens
    /// that <c>Truncate</c> returns to the recent window have their rewritten values, and are rewritten again at the next compression.
    /// </remarks>
    /// <inheritdoc cref="KeySelection.Rewritten"/>
    public static ValueSelection Rewritten(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new ValueSelection(name, SelectionRule.Rewritten, function);
    }

    /// <summary>The selections that need no function.</summary>
    public static IReadOnlyList<ValueSelection> All { get; } = [Magnitude, Structured, PerChannel, OutputAware];

    /// <summary>One of <see cref="All"/>, by its name.</summary>
    /// <exception cref="ArgumentException">There is no such selection.</exception>
    public static ValueSelection Named(string name) => Find(name, nameof(name), All);
}
