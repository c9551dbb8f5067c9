using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Tells how one attention class of a TorchSharp model is read, for <see cref="MustafarModuleExtensions"/>.</summary>
/// <remarks>
/// An adapter keeps no state of a conversation: one object serves all layers, and all threads at once. <see cref="Read"/> and
/// <see cref="Complete"/> run each in a dispose scope of its own, without gradients, and for each conversation on one thread at a time.
/// </remarks>
public abstract class AttentionAdapter
{
    /// <summary>Whether this adapter reads modules of this class. Asked for every module of the model.</summary>
    /// <param name="candidate">A module of the model.</param>
    public abstract bool Matches(nn.Module candidate);

    /// <summary>
    /// Whether a module keeps the cache of the current call in a field, so that a second thread would exchange it in the middle of a
    /// call. Calls of its forward then wait for one another. Asked for every module that no adapter matches; of classes that cannot be
    /// derived from it is not to be said. False by default.
    /// </summary>
    /// <param name="candidate">A module of the model.</param>
    public virtual bool TakesTurns(nn.Module candidate) => false;

    /// <summary>
    /// How many of the last tokens, itself included, a token sees in a model, as a module of it says; null, the default, if the module
    /// says none. Asked for every module.
    /// </summary>
    /// <param name="candidate">A module of the model.</param>
    public virtual int? SlidingWindowOf(nn.Module candidate) => null;

    /// <summary>Says which conversation a call of forward belongs to. Asked before anything else, and of several threads at once.</summary>
    /// <param name="attention">The module that was called, of a class derived from the one that matched.</param>
    /// <param name="arguments">What its forward was given.</param>
    /// <returns>The object that stands for the conversation, such as the model's own cache: the compressed caches live as long as it
    /// does. It is compared by reference and not kept alive. Null for a call that belongs to no conversation: then the class's own
    /// forward runs.</returns>
    public abstract object? ConversationOf(nn.Module attention, IReadOnlyList<object?> arguments);

    /// <summary>
    /// Whether each layer has an object of its own for a conversation. Then an object that was not seen before joins the conversation
    /// of the thread's latest call if that lacks the layer, and one of them releases all. False by default: one object for all layers.
    /// </summary>
    public virtual bool HasConversationPerLayer => false;

    /// <summary>Reads one call of forward: projects the hidden states and encodes positions.</summary>
    /// <param name="attention">The module that was called.</param>
    /// <param name="arguments">What its forward was given.</param>
    /// <exception cref="NotSupportedException">The call asks for what a compressed cache cannot give.</exception>
    public abstract AttentionStep Read(nn.Module attention, IReadOnlyList<object?> arguments);

    /// <summary>
    /// Projects the heads' outputs, makes what forward returns, and keeps the model's own cache at the right length.
    /// </summary>
    /// <param name="attention">The module that was called.</param>
    /// <param name="arguments">What its forward was given.</param>
    /// <param name="result">The attention of the step.</param>
    /// <returns>What forward returns; its tensors are to be moved to the outer dispose scope.</returns>
    public abstract object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result);
}
