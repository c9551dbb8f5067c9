using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Describes one attention class of a TorchSharp model for <see cref="MustafarModuleExtensions"/>.</summary>
/// <remarks>
/// An adapter keeps no state of a conversation: one object serves all layers and all threads. <see cref="Read"/> and
/// <see cref="Complete"/> each run in a separate dispose scope, without gradients, and for each conversation on one thread at a time.
/// </remarks>
public abstract class AttentionAdapter
{
    /// <summary>Whether this adapter reads modules of this class. Called for every module of the model.</summary>
    /// <param name="candidate">A module of the model.</param>
    public abstract bool Matches(nn.Module candidate);

    /// <summary>
    /// Whether a module keeps the cache of the current call in a field, so that a second thread would replace it in the middle of a call.
    /// Calls of its forward then run one after another. Called for every module that no adapter matches; return false for classes that
    /// cannot be derived from. False by default.
    /// </summary>
    /// <param name="candidate">A module of the model.</param>
    public virtual bool TakesTurns(nn.Module candidate) => false;

    /// <summary>
    /// How many of the latest tokens, including itself, a token sees in a model, according to one of its modules; null, the default, if the
    /// module does not say. Called for every module.
    /// </summary>
    /// <param name="candidate">A module of the model.</param>
    public virtual int? SlidingWindowOf(nn.Module candidate) => null;

    /// <summary>Returns the conversation that a call of forward belongs to. Called before anything else, on several threads at
    /// once.</summary>
    /// <param name="attention">The module that was called, of a class derived from the one that matched.</param>
    /// <param name="arguments">The arguments of its forward.</param>
    /// <returns>The object that identifies the conversation, such as the model's own cache: the compressed caches live as long as it
    /// does. It is compared by reference and not kept alive. Null for a call that belongs to no conversation: then the class's own
    /// forward runs.</returns>
    public abstract object? ConversationOf(nn.Module attention, IReadOnlyList<object?> arguments);

    /// <summary>
    /// Whether each layer has its own object for a conversation. Then an object that was not seen before joins the conversation
    /// of the thread's latest call if that lacks the layer, and one of them releases all. False by default: one object for all layers.
    /// </summary>
    public virtual bool HasConversationPerLayer => false;

    /// <summary>Reads one call of forward: projects the hidden states and encodes positions.</summary>
    /// <param name="attention">The module that was called.</param>
    /// <param name="arguments">The arguments of its forward.</param>
    /// <exception cref="NotSupportedException">The call needs what a compressed cache cannot do.</exception>
    public abstract AttentionStep Read(nn.Module attention, IReadOnlyList<object?> arguments);

    /// <summary>
    /// Projects the heads' outputs, builds the result of forward, and keeps the model's own cache at the right length.
    /// </summary>
    /// <param name="attention">The module that was called.</param>
    /// <param name="arguments">The arguments of its forward.</param>
    /// <param name="result">The attention of the step.</param>
    /// <returns>The result of forward; move its tensors to the outer dispose scope.</returns>
    public abstract object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result);
}
