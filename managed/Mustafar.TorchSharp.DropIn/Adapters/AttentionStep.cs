using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>New tokens of one conversation in one attention layer, as an <see cref="AttentionAdapter"/> reads them from a call.</summary>
/// <remarks>The object is immutable; its tensors belong to the thread of the call.</remarks>
public sealed class AttentionStep
{
    /// <summary>Queries [batch, num_heads, n, head_dim], positions encoded.</summary>
    public required Tensor Query { get; init; }

    /// <summary>Keys [batch, num_kv_heads, n, head_dim], positions encoded.</summary>
    public required Tensor Keys { get; init; }

    /// <summary>Values [batch, num_kv_heads, n, head_dim].</summary>
    public required Tensor Values { get; init; }

    /// <summary>
    /// Number of tokens before the new ones, including padding. 0 starts the conversation again; less than what is cached drops the
    /// tokens from there on.
    /// </summary>
    public required int Start { get; init; }

    /// <summary>
    /// Added to the scores, [batch or 1, 1, n, Start + n] or [n, Start + n]: 0 for tokens that a query sees, −10⁴ or less for others.
    /// It is causal; tokens that it hides before a conversation's first ones are padding, and stay hidden. Null for a single token. A
    /// tensor that several layers of a step pass is read once, so it must not be written to between them.
    /// </summary>
    public Tensor? Mask { get; init; }

    /// <summary>Factor of the scores before softmax; 1/√head_dim if null.</summary>
    public double? Scale { get; init; }

    /// <summary>
    /// The model's own dense keys and values [batch, num_kv_heads, Start, head_dim] of the tokens before, from which a conversation
    /// that began without this library is taken over; null if there are none.
    /// </summary>
    public (Tensor Keys, Tensor Values)? Past { get; init; }
}
