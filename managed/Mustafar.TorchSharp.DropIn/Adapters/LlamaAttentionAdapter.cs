using System.Reflection;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Reads <c>LlamaAttention</c> of llm-sharp, and its fused variant.</summary>
/// <remarks>
/// <c>Tensor forward(Tensor x, Tensor? mask, IRotary? rotary, IKvCache? cache)</c>. Each layer has its own cache, which identifies
/// the conversation and gives the model its size; keys and values in it are [batch, n, num_kv_heads, head_dim].
/// </remarks>
internal sealed class LlamaAttentionAdapter : AttentionAdapter
{
    private static readonly string[] Names = ["LlamaAttention", "FusedLlamaAttention"];
    private static readonly string[] Fields = ["n_head", "n_kv_head", "d_head", "qkv_proj", "o_proj"];

    public override bool Matches(nn.Module candidate)
    {
        Type type = candidate.GetType();
        return Names.Contains(type.Name)
            && Array.TrueForAll(Fields, name => Reflected.Has(type, name))
            && Reflected.ForwardParameters(candidate) is [ParameterInfo x, ParameterInfo mask, ParameterInfo rotary, ParameterInfo cache]
            && x.ParameterType == typeof(Tensor) && mask.ParameterType == typeof(Tensor)
            && rotary.ParameterType.GetMethod("apply") is not null
            && cache.ParameterType.GetMethod("update") is not null && cache.ParameterType.GetProperty("size") is not null;
    }

    public override object? ConversationOf(nn.Module attention, IReadOnlyList<object?> arguments) => arguments[3];

    public override bool HasConversationPerLayer => true;

    public override AttentionStep Read(nn.Module attention, IReadOnlyList<object?> arguments)
    {
        object conversation = arguments[3]!;
        if (attention.training && Reflected.Get(Reflected.Get<object>(attention, "dropout"), "p") is double and not 0)
        {
            throw new NotSupportedException("Attention over a compressed cache has no dropout; call eval() on the model.");
        }

        Tensor x = (Tensor)arguments[0]!;
        long heads = Reflected.GetCount(attention, "n_head");
        long kvHeads = Reflected.GetCount(attention, "n_kv_head");
        long headDim = Reflected.GetCount(attention, "d_head");
        Tensor all = Reflected.Get<nn.Module<Tensor, Tensor>>(attention, "qkv_proj").call(x)
            .reshape(x.size(0), x.size(1), heads + (2 * kvHeads), headDim);
        Tensor query = all.narrow(2, 0, heads);
        Tensor keys = all.narrow(2, heads, kvHeads);
        Tensor values = all.narrow(2, heads + kvHeads, kvHeads);
        if (arguments[2] is object rotary)
        {
            MethodInfo apply = Reflected.ForwardParameters(attention)[2].ParameterType.GetMethod("apply")!;
            (query, keys) = ((Tensor, Tensor))apply.Invoke(
                rotary, BindingFlags.DoNotWrapExceptions, binder: null, [query, keys], culture: null)!;
        }

        return new AttentionStep
        {
            Query = query.transpose(1, 2),
            Keys = keys.transpose(1, 2),
            Values = values.transpose(1, 2),
            Start = Start(conversation),
            Mask = (Tensor?)arguments[1],
            Past = PastOf(conversation),
        };
    }

    public override object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result)
    {
        object conversation = arguments[3]!;
        Tensor output = Reflected.Get<nn.Module<Tensor, Tensor>>(attention, "o_proj").call(result.Output);
        foreach (string name in (string[])["k_cache", "v_cache"])
        {
            if (Reflected.Get(conversation, name) is Tensor held && !AttentionResult.IsLengthOnly(held))
            {
                held.Dispose();
            }
        }

        long batch = output.size(0);
        SetLength(result.Length);
        result.OnUndo(SetLength);
        return output.MoveToOuterDisposeScope();

        void SetLength(int tokens)
        {
            Tensor length = result.LengthOnly(
                batch, tokens, Reflected.GetCount(attention, "n_kv_head"), Reflected.GetCount(attention, "d_head"));
            if (!Reflected.TrySet(conversation, "k_cache", length) || !Reflected.TrySet(conversation, "v_cache", length)
                || (SizeOf(conversation) != tokens && !Reflected.TrySet(conversation, "size", (long)tokens)))
            {
                throw new NotSupportedException($"The cache {conversation.GetType()} has no settable k_cache, v_cache and size.");
            }
        }
    }

    private static int Start(object conversation) =>
        Reflected.Get(conversation, "k_cache") is Tensor { IsInvalid: true }
            ? throw new InvalidOperationException("The conversation's compressed caches were released; start it again with new caches.")
            : SizeOf(conversation);

    private static int SizeOf(object conversation) => Reflected.GetCount(conversation, "size");

    private static (Tensor Keys, Tensor Values)? PastOf(object conversation)
    {
        int size = SizeOf(conversation);
        return size > 0 && Reflected.Get(conversation, "k_cache") is Tensor keys && Reflected.Get(conversation, "v_cache") is Tensor values
            && !AttentionResult.IsLengthOnly(keys)
                ? (keys.narrow(1, 0, size).transpose(1, 2), values.narrow(1, 0, size).transpose(1, 2))
                : null;
    }
}
