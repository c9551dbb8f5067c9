using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Reads <c>SelfAttention</c> of Torchsharp-llama.</summary>
/// <remarks>
/// <c>Tensor forward(Tensor input, int startPos, Tensor freqsComplex, Tensor? mask)</c>. A module has one conversation at a time, which
/// begins where startPos is 0. Its own caches have a fixed size and stay as they are.
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
        Tensor turns = (Tensor)arguments[2]!;
        return new AttentionStep
        {
            Query = Rotary.Interleaved(Project("wq", "nHeadsQ"), turns).transpose(1, 2),
            Keys = Rotary.Interleaved(Project("wk", "nKVHeads"), turns).transpose(1, 2),
            Values = Project("wv", "nKVHeads").transpose(1, 2),
            Start = (int)arguments[1]!,
            Mask = (Tensor?)arguments[3],
        };

        Tensor Project(string projection, string heads) =>
            Reflected.Get<nn.Module<Tensor, Tensor>>(attention, projection).forward(input)
                .reshape(input.shape[0], input.shape[1], Reflected.GetCount(attention, heads), Reflected.GetCount(attention, "headDim"));
    }

    public override object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result) =>
        Reflected.Get<nn.Module<Tensor, Tensor>>(attention, "wo").forward(result.Output).MoveToOuterDisposeScope();
}
