using static TorchSharp.torch;

namespace Mustafar;

/// <summary>How the channels of keys are chosen.</summary>
public sealed class KeySelection : ChannelSelection
{
    private KeySelection(string name, SelectionRule rule, Func<SelectionInput, Tensor>? function = null)
        : base(name, rule, function)
    {
    }

    /// <summary>Per token by magnitude, the default: of each key the channels of largest |k|. (Mustafar, arXiv 2505.22913.)</summary>
    public static KeySelection Magnitude { get; } = new("magnitude", SelectionRule.Magnitude);

    /// <summary>
    /// Per token, output-aware: of each key the channels of largest |k| · Σ|q|, an estimate of what a channel adds to the scores.
    /// (Mustafar, arXiv 2505.22913.)
    /// </summary>
    /// <remarks>
    /// Σ|q| is over the last 32 queries of the prompt and all query heads that read the key/value head; each sequence has its own. It is
    /// found when a sequence's first tokens are compressed and kept from then on, also by forks and in files. Steps of less than 32
    /// tokens before that add up.
    /// </remarks>
    public static KeySelection OutputAware { get; } = new("output-aware", SelectionRule.OutputAware);

    /// <summary>
    /// Whole channels, the same of all tokens of a sequence and head: those of largest ‖q‖ · ‖k‖, norms of a channel over tokens.
    /// (ThinK, arXiv 2407.21018.)
    /// </summary>
    /// <remarks>
    /// ‖q‖ is over the last 32 queries of the prompt and all query heads that read the key/value head, ‖k‖ over the sequence's tokens,
    /// both until its first tokens are compressed. A key that is 0 in a chosen channel keeps another channel in its place.
    /// </remarks>
    public static KeySelection Structured { get; } = new("structured", SelectionRule.StructuredKeys);

    /// <summary>Of each key the channels for which a function gives the largest numbers.</summary>
    /// <param name="name">What saved caches call it.</param>
    /// <param name="function">
    /// Gives Float32 [num_kv_heads, tokens, head_dim] for the tokens of <see cref="SelectionInput.Tokens"/>; magnitudes are compared, of
    /// equal ones the lower channel is kept, NaN is larger than any number. It is called whenever tokens of a sequence are compressed.
    /// </param>
    /// <exception cref="ArgumentException">The name is empty or has white space, '=', ',' or ';'.</exception>
    public static KeySelection ByScores(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new KeySelection(name, SelectionRule.Scores, function);
    }

    /// <summary>The channels that a function chooses, any number of each key.</summary>
    /// <param name="name">What saved caches call it.</param>
    /// <param name="function">
    /// Gives Bool [num_kv_heads, tokens, head_dim] for the tokens of <see cref="SelectionInput.Tokens"/>, with at most 32 times
    /// <see cref="SelectionInput.Kept"/> true in each 32 tokens of a head. It is called whenever tokens of a sequence are compressed.
    /// </param>
    /// <exception cref="ArgumentException">The name is empty or has white space, '=', ',' or ';'.</exception>
    public static KeySelection ByMask(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new KeySelection(name, SelectionRule.Mask, function);
    }

    /// <summary>All channels of each key, as a function rewrites it when it is compressed: what a format that there is not would make of it.</summary>
    /// <remarks>
    /// For measuring quality: keys take as many bytes as they are, attention reads what the function gave, and the recent window stays as it
    /// is. It needs <see cref="MustafarOptions.KeySparsity"/> 0 and <see cref="MustafarOptions.KeyBits"/> 16. Tokens that are taken back into the recent window
    /// by a shorter length are those that were stored, and are rewritten once more when they are compressed again.
    /// </remarks>
    /// <param name="name">What saved caches call it.</param>
    /// <param name="function">
    /// Gives a tensor of the shape, type and device of <see cref="SelectionInput.Tokens"/>, whose number is a multiple of
    /// <see cref="MustafarOptions.GroupSize"/>. It is called whenever tokens of a sequence are compressed, of a prompt with many groups at once:
    /// what it makes of a group must not depend on the others.
    /// </param>
    /// <exception cref="ArgumentException">The name is empty or has white space, '=', ',' or ';'.</exception>
    public static KeySelection Rewritten(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new KeySelection(name, SelectionRule.Rewritten, function);
    }

    /// <summary>The selections that need no function.</summary>
    public static IReadOnlyList<KeySelection> All { get; } = [Magnitude, OutputAware, Structured];

    /// <summary>One of <see cref="All"/>, by its name.</summary>
    /// <exception cref="ArgumentException">There is no such selection.</exception>
    public static KeySelection Named(string name) => Find(name, nameof(name), All);
}
