using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>The implementation of one replaced attention module: it handles the calls of forward.</summary>
internal sealed class AttentionLayer(nn.Module original, AttentionAdapter adapter, MustafarAttachment attachment)
    : ModuleReplacement(original)
{
    /// <summary>The projections of queries, keys and values as one product; null if they are separate.</summary>
    internal JointLinear? Projections { get; set; }

    internal override object? Forward(IReplacedModule module, object?[] arguments)
    {
        // Also when the class's own forward runs: exchanging modules or weights waits for it.
        if (!attachment.TryEnter())
        {
            return module.CallOriginal(arguments);
        }

        try
        {
            nn.Module attention = (nn.Module)module;
            return adapter.ConversationOf(attention, arguments) is object key
                ? Attend(attention, arguments, key)
                : module.CallOriginal(arguments);
        }
        finally
        {
            attachment.Leave();
        }
    }

    private object? Attend(nn.Module attention, object?[] arguments, object key)
    {
        MustafarConversation conversation = attachment.ConversationOf(key, this, adapter.HasConversationPerLayer, out bool joined);
        conversation.Enter();
        CacheStep? earlier = conversation.Caches.HasAttended(this) ? conversation.Caches.OpenStep(this) : null;
        try
        {
            using IDisposable noGrad = no_grad();
            using DisposeScope scope = NewDisposeScope();
            AttentionResult result;
            // The projections of a prompt are freed before its output is made.
            using (DisposeScope reading = NewDisposeScope())
            {
                AttentionStep step = adapter.Read(attention, arguments);
                if (joined && !conversation.Step.HasTokensOf(step))
                {
                    conversation.Leave();
                    conversation = attachment.Begin(key);
                    conversation.Enter();
                }

                result = Attend(conversation, step);
                result.Output.MoveToOuterDisposeScope();
            }

            return adapter.Complete(attention, arguments, result);
        }
        catch
        {
            // All layers or none. A step that this call is not part of may be one that the model has finished.
            if (conversation.Caches.OpenStep(this) != earlier)
            {
                conversation.Caches.Undo(this);
            }

            throw;
        }
        finally
        {
            conversation.Leave();
        }
    }

    private AttentionResult Attend(MustafarConversation whole, AttentionStep step)
    {
        if (whole.IsReleased)
        {
            throw new InvalidOperationException("The conversation was released in the middle of this step; start it again.");
        }

        whole.Step.Visit(this, step);
        ConversationLayer part = whole.Of(this);
        long[] shape = step.Query.Sizes();
        Tensor output = whole.Caches.Attend(this, part, whole.Step, step);
        Tensor joined = output.transpose(1, 2).reshape(shape[0], shape[2], shape[1] * shape[3]);
        return new AttentionResult(joined, whole, part);
    }
}
