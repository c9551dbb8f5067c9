using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>The result of the compressed cache for an <see cref="AttentionStep"/>.</summary>
/// <remarks>Use it on the thread of the call and until its end; <see cref="LengthOnly"/> may also be used in
/// <see cref="OnUndo"/>.</remarks>
public sealed class AttentionResult
{
    private readonly MustafarConversation _conversation;
    private readonly ConversationLayer _layer;
    private readonly ScalarType _dtype;
    private readonly Device _device;

    internal AttentionResult(Tensor output, MustafarConversation conversation, ConversationLayer layer)
    {
        Output = output;
        Length = layer.Length;
        (_dtype, _device) = (output.dtype, output.device);
        _conversation = conversation;
        _layer = layer;
    }

    /// <summary>The heads' outputs [batch, n, num_heads · head_dim], for the output projection; zero at padding.</summary>
    public Tensor Output { get; }

    /// <summary>Number of tokens of the conversation now, including padding.</summary>
    public int Length { get; }

    /// <summary>
    /// A tensor for the model's own cache, from which it reads the conversation's length: it has the requested shape and the memory of
    /// one element, NaN. The next one of the same layer and conversation replaces it; it is disposed with the conversation. If the
    /// model disposes it, as with its own cache, the conversation is released, at the latest when another begins or they are listed.
    /// </summary>
    /// <param name="shape">The shape that the model's own keys or values would have.</param>
    public Tensor LengthOnly(params long[] shape) => _layer.LengthOnly(shape, _dtype, _device);

    /// <summary>
    /// Registers how to restore the model's own cache to its state before this step: the step is undone in all layers if one of the later
    /// ones fails, or if the model begins it again.
    /// </summary>
    /// <param name="restore">Receives the number of tokens that remain, including padding. It may use <see cref="LengthOnly"/>.</param>
    public void OnUndo(Action<int> restore)
    {
        ArgumentNullException.ThrowIfNull(restore);
        _layer.OnUndo(restore);
    }

    /// <summary>
    /// Releases the conversation once a dispose scope is disposed, such as one in the model's own cache; at the latest when
    /// another conversation begins or they are listed.
    /// </summary>
    /// <param name="scope">The scope.</param>
    public void ReleaseWith(DisposeScope scope)
    {
        ArgumentNullException.ThrowIfNull(scope);
        _conversation.ReleaseWith(scope);
    }

    /// <summary>Whether a tensor was made by <see cref="LengthOnly"/>, and so holds no keys or values of the past.</summary>
    /// <param name="tensor">A tensor in the model's own cache.</param>
    public static bool IsLengthOnly(Tensor tensor) => ConversationLayer.IsLengthOnly(tensor);
}
