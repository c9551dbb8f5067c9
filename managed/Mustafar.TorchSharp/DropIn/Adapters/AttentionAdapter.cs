using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Tells how one attention class of a TorchSharp model is read, for <see cref="MustafarModuleExtensions.UseMustafar"/>.</summary>
/// <remarks>
/// An adapter keeps no state of a conversation; one object serves all layers and threads. Both methods run in a dispose scope of
/// their own and without gradients.
/// </remarks>
public abstract class AttentionAdapter
{
    /// <summary>Whether this adapter reads modules of this class. Asked for every module of the model.</summary>
    /// <param name="candidate">A module of the model.</param>
    public abstract bool Matches(nn.Module candidate);

    /// <summary>
    /// Reads one call of forward: projects the hidden states, encodes positions, and says which conversation the tokens belong to.
    /// </summary>
    /// <param name="attention">The module that was called, of a class derived from the one that matched.</param>
    /// <param name="arguments">What its forward was given.</param>
    /// <returns>The step, or null for a call that belongs to no conversation: then the class's own forward runs.</returns>
    /// <exception cref="NotSupportedException">The call asks for what a compressed cache cannot give.</exception>
    public abstract AttentionStep? Read(nn.Module attention, IReadOnlyList<object?> arguments);

    /// <summary>
    /// Projects the heads' outputs, makes what forward returns, and keeps the model's own cache at the right length.
    /// </summary>
    /// <param name="attention">The module that was called.</param>
    /// <param name="arguments">What its forward was given.</param>
    /// <param name="result">The attention of the step.</param>
    /// <returns>What forward returns; its tensors are to be moved to the outer dispose scope.</returns>
    public abstract object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result);
}
