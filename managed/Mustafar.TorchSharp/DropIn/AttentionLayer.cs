using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What stands behind one replaced attention module: it answers the calls of forward.</summary>
internal sealed class AttentionLayer(nn.Module original, AttentionAdapter adapter, MustafarAttachment attachment)
    : ModuleReplacement(original)
{
    /// <summary>The projections of queries, keys and values as one product; null if they are not taken so.</summary>
    internal JointLinear? Projections { get; set; }

    internal override object? Forward(IReplacedModule module, object?[] arguments)
    {
        nn.Module attention = (nn.Module)module;
        object? key = attachment.IsDisposed ? null : adapter.ConversationOf(attention, arguments);
        if (key is null || !attachment.TryEnter())
        {
            return module.CallOriginal(arguments);
        }

        try
        {
            return Attend(attention, arguments, key);
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
        try
        {
            using IDisposable noGrad = no_grad();
            using DisposeScope scope = NewDisposeScope();
            AttentionStep step = adapter.Read(attention, arguments);
            if (joined && !conversation.Step.HasTokensOf(step))
            {
                conversation.Leave();
                conversation = attachment.Begin(key);
                conversation.Enter();
            }

            return adapter.Complete(attention, arguments, Attend(conversation, step));
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
            throw new InvalidOperationException("The conversation was released in the middle of this step; begin it anew.");
        }

        whole.Step.Visit(this, step);
        ConversationLayer conversation = whole.Of(this);
        int tokens = checked((int)step.Query.shape[2]);
        bool begins = step.Start == 0;
        int[] padding = begins ? new int[step.Query.shape[0]] : Continue(conversation, step);
        int[] padded = attachment.Mask.Read(whole.Step, step, step.Start, padding);
        if (begins)
        {
            conversation.Restart(step, attachment.Options);
        }

        MustafarCache cache = conversation.Cache!;
        Tensor output;
        if (begins && Array.Exists(padded, count => count > 0))
        {
            // The cache has padding on the right and keeps none of it: each sequence is turned left by its padding, the output back.
            int[] counts = Array.ConvertAll(padded, count => tokens - count);
            Tensor turned = cache.Forward(
                Turn(step.Query, padded), Turn(step.Keys, padded), Turn(step.Values, padded), step.Scale, counts);
            output = Turn(turned, counts);
            conversation.Pad(padded);
        }
        else
        {
            output = cache.Forward(step.Query, step.Keys, step.Values, step.Scale);
        }

        conversation.Length = step.Start + tokens;
        conversation.Weigh();
        long[] shape = step.Query.shape;
        Tensor joined = output.transpose(1, 2).reshape(shape[0], tokens, shape[1] * shape[3]);
        return new AttentionResult(joined, whole, conversation);
    }

    // Brings the conversation to the step's start, and returns its padding.
    private int[] Continue(ConversationLayer conversation, AttentionStep step)
    {
        if (conversation.Cache is null && step.Past is (Tensor keys, Tensor values))
        {
            if (keys.isnan().all().item<bool>())
            {
                throw new InvalidOperationException(
                    $"The model's cache has NaN in place of {step.Start} tokens: it is a copy of a conversation whose tokens are held " +
                    "compressed, which a copy does not have. Begin with a new cache and the whole prompt.");
            }

            conversation.Restart(step, attachment.Options);
            conversation.Cache!.Append(keys, values);
            conversation.Length = step.Start;
        }

        if (conversation.Cache is null || step.Start > conversation.Length)
        {
            throw new InvalidOperationException(
                $"The call continues a conversation at token {step.Start}, of which {conversation.Length} tokens are cached: " +
                "it began before attention was replaced, or its caches were released.");
        }

        if (step.Query.shape[0] != conversation.Cache.BatchSize)
        {
            throw new ArgumentException(
                $"Expected {conversation.Cache.BatchSize} sequences, as the conversation began with, but got {step.Query.shape[0]}.");
        }

        if (step.Start < conversation.Length)
        {
            if (Array.Exists(conversation.Padding, count => count > 0))
            {
                throw new NotSupportedException("Tokens cannot be taken back from a conversation with padding.");
            }

            conversation.Cache.Truncate(step.Start);
            conversation.Length = step.Start;
        }

        return conversation.Padding;
    }

    // Sequence b of [batch, heads, n, head_dim] turned left by counts[b] tokens.
    private static Tensor Turn(Tensor tensor, int[] counts)
    {
        long[] shape = tensor.shape;
        long[] source = new long[shape[0] * shape[2]];
        for (int i = 0; i < source.Length; i++)
        {
            source[i] = ((i % shape[2]) + counts[i / shape[2]]) % shape[2];
        }

        Tensor index = torch.tensor(source, device: tensor.device).reshape(shape[0], 1, shape[2], 1).expand(shape);
        return tensor.gather(2, index);
    }
}
