using static TorchSharp.torch;

namespace Mustafar;

/// <summary>How the channels of values are chosen.</summary>
public sealed class ValueSelection : ChannelSelection
{
    private ValueSelection(string name, SelectionRule rule, Func<SelectionInput, Tensor>? function = null)
        : base(name, rule, function)
    {
    }

    /// <summary>Per token by magnitude, the default: of each value the channels of largest |v|. (Mustafar, arXiv 2505.22913.)</summary>
    /// <remarks>What a token's value adds to the output is weighted alike in all its channels, so that this is output-aware already.</remarks>
    public static ValueSelection Magnitude { get; } = new("magnitude", SelectionRule.Magnitude);

    /// <summary>
    /// Whole channels, the same of all tokens of a sequence and head: those of largest ‖v‖ over the sequence's tokens until its first ones
    /// are compressed. (ThinK, arXiv 2407.21018, applied to values.)
    /// </summary>
    /// <remarks>A value that is 0 in a chosen channel keeps another channel in its place.</remarks>
    public static ValueSelection Structured { get; } = new("structured", SelectionRule.StructuredValues);

    /// <summary>
    /// Per channel by magnitude: of each channel the tokens of largest |v| among every 32 that follow one another, ⌊32 · kept / head_dim⌋
    /// of them. (Mustafar, arXiv 2505.22913: per-channel magnitude pruning.)
    /// </summary>
    /// <remarks>Tokens keep different numbers of channels, which takes the same room for each 32.</remarks>
    public static ValueSelection PerChannel { get; } = new("per-channel", SelectionRule.PerChannel);

    /// <summary>
    /// Per channel, output-aware: of each channel the tokens of largest |v| · a among every 32 that follow one another, ⌊32 · kept / head_dim⌋
    /// of them. a is the attention that a token receives, an estimate of what its value adds to outputs. (Mustafar, arXiv 2505.22913.)
    /// </summary>
    /// <remarks>
    /// <para>
    /// Attention is that of the sequence's last 32 queries when the token is compressed, summed over these and all query heads that read the
    /// key/value head, over keys as they are stored: of a prompt in one step, the prompt's last 32 queries; of tokens that come one by one,
    /// the queries up to that of the token with which a group falls due, which are those of the recent window
    /// if that has 32 tokens. What a step of several tokens compresses before they attend counts queries up to that of the first of them.
    /// A token whose queries are not known, as after a shorter length, counts by magnitude.
    /// </para>
    /// <para>
    /// Queries are kept for each sequence, num_heads · 32 · head_dim numbers in each layer, also by forks and in files.
    /// <see cref="KeyValueCacheMemory"/> and <see cref="CacheUsage"/> count them, and a budget of bytes, which is divided before
    /// the number of heads is known, does not. Compressing a group reads all keys once.
    /// </para>
    /// </remarks>
    public static ValueSelection OutputAware { get; } = new("output-aware", SelectionRule.PerChannelOutputAware);

    /// <summary>Of each value the channels for which a function gives the largest numbers.</summary>
    /// <inheritdoc cref="KeySelection.ByScores"/>
    public static ValueSelection ByScores(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new ValueSelection(name, SelectionRule.Scores, function);
    }

    /// <summary>The channels that a function chooses, any number of each value.</summary>
    /// <inheritdoc cref="KeySelection.ByMask"/>
    public static ValueSelection ByMask(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new ValueSelection(name, SelectionRule.Mask, function);
    }

    /// <summary>All channels of each value, as a function rewrites it when it is compressed: what a format that there is not would make of it.</summary>
    /// <remarks>
    /// For measuring quality: values take as many bytes as they are, attention reads what the function gave, and the recent window stays as it
    /// is. It needs <see cref="MustafarOptions.ValueSparsity"/> 0 and <see cref="MustafarOptions.ValueBits"/> 16. Tokens that are taken back into the recent window
    /// by a shorter length are those that were stored, and are rewritten once more when they are compressed again.
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
