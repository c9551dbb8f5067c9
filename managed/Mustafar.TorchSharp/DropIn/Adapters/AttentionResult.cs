using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What the compressed cache gave for an <see cref="AttentionStep"/>.</summary>
public sealed class AttentionResult
{
    private readonly ConversationLayer _conversation;

    internal AttentionResult(Tensor output, int length, ConversationLayer conversation)
    {
        Output = output;
        Length = length;
        _conversation = conversation;
    }

    /// <summary>The heads' outputs [batch, n, num_heads · head_dim], for the output projection; zero at padding.</summary>
    public Tensor Output { get; }

    /// <summary>Number of tokens of the conversation now, padding included.</summary>
    public int Length { get; }

    /// <summary>
    /// A tensor for the model's own cache, from which it reads the conversation's length: it has the shape asked for and the memory of
    /// one element, NaN. The next one of the same layer and conversation replaces it; it is disposed with the conversation.
    /// </summary>
    /// <param name="shape">The shape that the model's own keys or values would have.</param>
    public Tensor LengthOnly(params long[] shape) => _conversation.LengthOnly(shape, Output.dtype, Output.device);

    /// <summary>Whether a tensor was made by <see cref="LengthOnly"/>, and so holds no keys or values of the past.</summary>
    /// <param name="tensor">A tensor in the model's own cache.</param>
    public static bool IsLengthOnly(Tensor tensor) => ConversationLayer.IsLengthOnly(tensor);
}
