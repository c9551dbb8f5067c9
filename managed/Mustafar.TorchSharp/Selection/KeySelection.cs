using static TorchSharp.torch;

namespace Mustafar;

/// <summary>How the kept channels of keys are selected.</summary>
public sealed class KeySelection : ChannelSelection
{
    private KeySelection(string name, SelectionRule rule, Func<SelectionInput, Tensor>? function = null)
        : base(name, rule, function)
    {
    }

    /// <summary>Per token by magnitude, the default: in each key, the channels with the largest |k|. (Mustafar, arXiv 2505.22913.)</summary>
    public static KeySelection Magnitude { get; } = new("magnitude", SelectionRule.Magnitude);

    /// <summary>
    /// Per token, output-aware: in each key, the channels with the largest |k| · Σ|q|, an estimate of what a channel adds to the scores.
    /// (Mustafar, arXiv 2505.22913.)
    /// </summary>
    /// <remarks>
    /// Σ|q| is the sum over the last 32 queries of the prompt and all query heads that read the KV head. Each sequence has its own. It is
    /// computed when the first tokens of a sequence are compressed and does not change after that; forks and files keep it. If the prompt
    /// comes in steps of fewer than 32 tokens, the sum is over all of them.
    /// </remarks>
    public static KeySelection OutputAware { get; } = new("output-aware", SelectionRule.OutputAware);

    /// <summary>
    /// Whole channels, the same ones in all tokens of a sequence and head: those with the largest ‖q‖ · ‖k‖, norms of a channel over tokens.
    /// (ThinK, arXiv 2407.21018.)
    /// </summary>
    /// <remarks>
    /// ‖q‖ is over the last 32 queries of the prompt and all query heads that read the KV head, ‖k‖ over the sequence's tokens, both before
    /// the first compression. A key that is 0 in a selected channel keeps another channel instead.
    /// </remarks>
    public static KeySelection Structured { get; } = new("structured", SelectionRule.StructuredKeys);

    /// <summary>In each key, the channels to which a function gives the largest scores.</summary>
    /// <param name="name">Its name in the files of saved caches.</param>
    /// <param name="function">
    /// Returns Float32 [num_kv_heads, tokens, head_dim] for <see cref="SelectionInput.Tokens"/>. Magnitudes are compared; among equal ones
    /// the lower channel is kept, and NaN counts as larger than any number. Called whenever tokens of a sequence are compressed.
    /// </param>
    /// <exception cref="ArgumentException">The name is empty or has white space, '=', ',' or ';'.</exception>
    public static KeySelection ByScores(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new KeySelection(name, SelectionRule.Scores, function);
    }

    /// <summary>The channels that a function selects, any number of each key.</summary>
    /// <param name="name">Its name in the files of saved caches.</param>
    /// <param name="function">
    /// Returns Bool [num_kv_heads, tokens, head_dim] for <see cref="SelectionInput.Tokens"/>, with at most 32 times
    /// <see cref="SelectionInput.Kept"/> true in every 32 tokens of a head. Called whenever tokens of a sequence are compressed.
    /// </param>
    /// <exception cref="ArgumentException">The name is empty or has white space, '=', ',' or ';'.</exception>
    public static KeySelection ByMask(string name, Func<SelectionInput, Tensor> function)
    {
        ArgumentNullException.ThrowIfNull(function);
        return new KeySelection(name, SelectionRule.Mask, function);
    }

    /// <summary>All channels of each key, rewritten by a function when the key is compressed: simulates a format that does not exist.</summary>
    /// <remarks>
    /// This is for measuring quality: keys take their full size, attention reads what the function returned, and the recent window is
    /// unchanged. It needs <see cref="MustafarOptions.KeySparsity"/> 0 and <see cref="MustafarOptions.KeyBits"/> 16. Compressed tokens that
    /// <c>Truncate</c> returns to the recent window have their rewritten values, and are rewritten again at the next compression.
    /// </remarks>
    /// <param name="name">Its name in the files of saved caches.</param>
    /// <param name="function">
    /// Returns a tensor of the shape, type and device of <see cref="SelectionInput.Tokens"/>. The number of tokens is a multiple of
    /// <see cref="MustafarOptions.GroupSize"/>. Called whenever tokens of a sequence are compressed, with many groups at once for a prompt;
    /// the result for a group must not depend on the others.
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
