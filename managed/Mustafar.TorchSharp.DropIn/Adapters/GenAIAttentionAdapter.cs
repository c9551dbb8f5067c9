using System.Reflection;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Reads <c>Attention</c> of Microsoft.ML.GenAI.Core, the attention of its LLaMA, Mistral and Phi-3 models.</summary>
/// <remarks>
/// <c>AttentionOutput forward(AttentionInput)</c>; the first versions have a <c>Phi3Attention</c> with the same members for Phi-3. The
/// input's cache identifies the conversation; it is a dictionary from layers to keys and values, from which the model reads the length.
/// The models keep the cache of the current call in a field.
/// </remarks>
internal sealed class GenAIAttentionAdapter : AttentionAdapter
{
    private const int FirstLlamaWindow = 2048;

    private static readonly string[] Names = ["Attention", "Phi3Attention"];
    private static readonly string[] Fields = ["_layerIdx", "_numHeads", "_headDim", "_numKeyValueHeads", "o_proj"];
    private static readonly string[] Inputs = ["HiddenStates", "AttentionMask", "PositionIds", "Cache"];

    public override bool Matches(nn.Module candidate)
    {
        Type type = candidate.GetType();
        return Names.Contains(type.Name)
            && Array.TrueForAll(Fields, name => Reflected.Has(type, name))
            && (Reflected.Has(type, "qkv_proj") || Reflected.Has(type, "q_proj"))
            && Reflected.ForwardParameters(candidate) is [ParameterInfo input]
            && Array.TrueForAll(Inputs, name => Reflected.Has(input.ParameterType, name));
    }

    public override bool TakesTurns(nn.Module candidate) =>
        !candidate.GetType().IsSealed && Reflected.ForwardParameters(candidate).Length == 1 && KeepsCache(candidate.GetType());

    // The masks show the window plus one token.
    public override int? SlidingWindowOf(nn.Module candidate)
    {
        Type type = candidate.GetType();
        if (!KeepsCache(type) || Reflected.Get(candidate, "_config") is not object config)
        {
            return null;
        }

        return Reflected.Has(config.GetType(), "SlidingWindow")
            ? Reflected.Get(config, "SlidingWindow") is int window ? window + 1 : null
            : IsFirstLlama(type) ? FirstLlamaWindow + 1 : null;
    }

    public override object? ConversationOf(nn.Module attention, IReadOnlyList<object?> arguments) =>
        Reflected.Get(arguments[0] ?? throw new ArgumentNullException(nameof(arguments)), "Cache");

    public override AttentionStep Read(nn.Module attention, IReadOnlyList<object?> arguments)
    {
        object input = arguments[0]!;
        if (Reflected.Get(input, "OutputAttentions") is true)
        {
            throw new NotSupportedException("Attention over a compressed cache can't return attention weights (OutputAttentions).");
        }

        if (attention.training && Reflected.Get(attention, "_attentionDropout") is double and not 0)
        {
            throw new NotSupportedException("Attention over a compressed cache has no dropout; call eval() on the model.");
        }

        IDictionary<int, (Tensor, Tensor)> past = PastOf(Reflected.Get<object>(input, "Cache"));
        int layer = Reflected.GetCount(attention, "_layerIdx");
        Tensor hidden = Reflected.Get<Tensor>(input, "HiddenStates");
        (Tensor query, Tensor keys, Tensor values) = Project(attention, hidden);
        DecoderLayer.FreeReturned(); // the hidden states, if they are the result of the layer's norm
        int start = Start(past, layer);
        (Tensor cos, Tensor sin) = Positions(attention, input, values, start);
        Rotary.RotateHalves(query, keys, cos, sin);
        return new AttentionStep
        {
            Query = query,
            Keys = keys,
            Values = values,
            Start = start,
            Mask = (Tensor?)Reflected.Get(input, "AttentionMask"),
            Past = past.TryGetValue(layer, out (Tensor Keys, Tensor Values) dense) && !AttentionResult.IsLengthOnly(dense.Keys)
                ? dense
                : null,
        };
    }

    public override object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result)
    {
        object conversation = Reflected.Get<object>(arguments[0]!, "Cache");
        IDictionary<int, (Tensor, Tensor)> past = PastOf(conversation);
        int layer = Reflected.GetCount(attention, "_layerIdx");
        Tensor hidden = Reflected.Get<nn.Module<Tensor, Tensor>>(attention, "o_proj").forward(result.Output);
        if (past.TryGetValue(layer, out (Tensor Keys, Tensor Values) dense) && !AttentionResult.IsLengthOnly(dense.Keys))
        {
            // Taken over in this step; the model's own update also disposes what it replaces.
            dense.Keys.Dispose();
            dense.Values.Dispose();
        }

        long batch = hidden.size(0);
        SetLength(result.Length);
        result.OnUndo(SetLength);
        if (Reflected.Get(conversation, "_disposeScope") is DisposeScope scope)
        {
            result.ReleaseWith(scope);
        }

        DecoderLayer.Return(hidden);
        return OutputOf(attention, hidden.MoveToOuterDisposeScope(), conversation);

        void SetLength(int tokens)
        {
            Tensor length = result.LengthOnly(
                batch, Reflected.GetCount(attention, "_numKeyValueHeads"), tokens, Reflected.GetCount(attention, "_headDim"));
            past[layer] = (length, length);
        }
    }

    private static bool KeepsCache(Type type) =>
        Reflected.TypeOf(type, "_cache")?.IsAssignableTo(typeof(IDictionary<int, (Tensor, Tensor)>)) == true;

    // Its masks have a window that no configuration names; later versions have none, and positions for all layers in the model.
    private static bool IsFirstLlama(Type type) => type.Name == "LlamaModel" && !Reflected.Has(type, "_rotaryEmb");

    private static IDictionary<int, (Tensor, Tensor)> PastOf(object conversation) =>
        conversation as IDictionary<int, (Tensor, Tensor)> ?? throw new NotSupportedException(
            $"The cache {conversation.GetType()} is not a dictionary from layers to keys and values, which is needed to read it.");

    private static int Start(IDictionary<int, (Tensor Keys, Tensor)> past, int layer)
    {
        if (!past.TryGetValue(layer, out (Tensor Keys, Tensor) dense))
        {
            return 0;
        }

        return !dense.Keys.IsInvalid
            ? checked((int)dense.Keys.size(-2))
            : throw new InvalidOperationException("The conversation's compressed caches were released; start it again with a new cache.");
    }

    private static (Tensor Query, Tensor Keys, Tensor Values) Project(nn.Module attention, Tensor hidden)
    {
        long numHeads = Reflected.GetCount(attention, "_numHeads");
        long numKvHeads = Reflected.GetCount(attention, "_numKeyValueHeads");
        long headDim = Reflected.GetCount(attention, "_headDim");
        JointLinear? projections = ((attention as IReplacedModule)?.Replacement as AttentionLayer)?.Projections;
        // Of a long prompt one by one: a tensor of all three is larger than any that was freed before, so that it needs memory of its own.
        Tensor? joint = (hidden.size(0) * hidden.size(1) > TokenPieces.AtOnce ? null : projections?.Project(hidden))
            ?? (Reflected.Get(attention, "qkv_proj") as nn.Module<Tensor, Tensor>)?.forward(hidden);
        if (joint is Tensor all)
        {
            Tensor heads = Heads(all, numHeads + (2 * numKvHeads));
            return (
                heads.narrow(1, 0, numHeads), heads.narrow(1, numHeads, numKvHeads), heads.narrow(1, numHeads + numKvHeads, numKvHeads));
        }

        return (
            Heads(Reflected.Get<nn.Module<Tensor, Tensor>>(attention, "q_proj").forward(hidden), numHeads),
            Heads(Reflected.Get<nn.Module<Tensor, Tensor>>(attention, "k_proj").forward(hidden), numKvHeads),
            Heads(Reflected.Get<nn.Module<Tensor, Tensor>>(attention, "v_proj").forward(hidden), numKvHeads));

        Tensor Heads(Tensor projected, long heads) =>
            projected.reshape(hidden.size(0), hidden.size(1), heads, headDim).transpose(1, 2);
    }

    // Newer versions compute cosines and sines once for all layers and pass them; older ones have a module in each layer.
    private static (Tensor Cos, Tensor Sin) Positions(nn.Module attention, object input, Tensor values, int start)
    {
        object? embeddings = Reflected.Get(input, "PositionalEmbeddings");
        if (embeddings is null)
        {
            object module = Reflected.Get(attention, "rotary_emb")
                ?? throw new NotSupportedException($"{attention.GetType()} was given no rotary positions and has no rotary_emb.");
            MethodInfo forward = Reflected.ForwardOf(module.GetType());
            object request = Reflected.New(
                forward.GetParameters()[0].ParameterType,
                values, Reflected.Get<Tensor>(input, "PositionIds"), checked((int)(start + values.size(2))));
            embeddings = forward.Invoke(module, BindingFlags.DoNotWrapExceptions, binder: null, [request], culture: null)!;
        }

        return embeddings is ValueTuple<Tensor, Tensor> pair
            ? pair
            : (Reflected.Get<Tensor>(embeddings, "Cos"), Reflected.Get<Tensor>(embeddings, "Sin"));
    }

    private static object OutputOf(nn.Module attention, Tensor hidden, object conversation) =>
        Reflected.New(Reflected.ForwardOf(attention.GetType()).ReturnType, hidden, null, conversation);
}
