using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Reads <c>SelfAttention</c> of Torchsharp-llama.</summary>
/// <remarks>
/// <c>Tensor forward(Tensor input, int startPos, Tensor freqsComplex, Tensor? mask)</c>. A module has one conversation at a time, which
/// begins where startPos is 0. Its own caches <c>cache_k</c> and <c>cache_v</c> [max_batch, max_length, num_kv_heads, head_dim] are
/// allocated with the module. They are kept up to date: nothing in the model's own attention would notice tokens that it lacks.
/// </remarks>
internal sealed class SelfAttentionAdapter : AttentionAdapter
{
    private static readonly string[] Fields = ["wq", "wk", "wv", "wo", "headDim", "nHeadsQ", "nKVHeads"];
    private static readonly Type[] Parameters = [typeof(Tensor), typeof(int), typeof(Tensor), typeof(Tensor)];

    public override bool Matches(nn.Module candidate)
    {
        Type type = candidate.GetType();
        return type.Name == "SelfAttention"
            && Array.TrueForAll(Fields, name => Reflected.Has(type, name))
            && Reflected.ForwardParameters(candidate).Select(parameter => parameter.ParameterType).SequenceEqual(Parameters);
    }

    public override object? ConversationOf(nn.Module attention, IReadOnlyList<object?> arguments) => attention;

    public override bool HasConversationPerLayer => true;

    public override AttentionStep Read(nn.Module attention, IReadOnlyList<object?> arguments)
    {
        Tensor input = (Tensor)arguments[0]!;
        int start = (int)arguments[1]!;
        Tensor turns = (Tensor)arguments[2]!;
        Tensor keys = Rotary.Interleaved(Project("wk", "nKVHeads"), turns);
        Tensor values = Project("wv", "nKVHeads");
        Store(attention, "cache_k", keys, start);
        Store(attention, "cache_v", values, start);
        return new AttentionStep
        {
            Query = Rotary.Interleaved(Project("wq", "nHeadsQ"), turns).transpose(1, 2),
            Keys = keys.transpose(1, 2),
            Values = values.transpose(1, 2),
            Start = start,
            Mask = (Tensor?)arguments[3],
        };

        Tensor Project(string projection, string heads) =>
            Reflected.Get<nn.Module<Tensor, Tensor>>(attention, projection).forward(input)
                .reshape(input.size(0), input.size(1), Reflected.GetCount(attention, heads), Reflected.GetCount(attention, "headDim"));
    }

    public override object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result) =>
        Reflected.Get<nn.Module<Tensor, Tensor>>(attention, "wo").forward(result.Output).MoveToOuterDisposeScope();

    // Tokens beyond its size are not stored: the model's own attention fails there.
    private static void Store(nn.Module attention, string cache, Tensor tokens, int start)
    {
        (long batch, long count) = (tokens.size(0), tokens.size(1));
        if (Reflected.Get(attention, cache) is Tensor own && batch <= own.size(0) && start + count <= own.size(1))
        {
            own.narrow(0, 0, batch).narrow(1, start, count).copy_(tokens);
        }
    }
}
