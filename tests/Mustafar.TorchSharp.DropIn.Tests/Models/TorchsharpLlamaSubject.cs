using System.Reflection;
using Mustafar.Tests.DropIn.Models.TorchsharpLlama;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

internal sealed class TorchsharpLlamaSubject(int heads, int kvHeads, ScalarType dtype) : Subject(new Transformer(heads, kvHeads, dtype))
{
    /// <summary>The model has one conversation at a time, which begins at position 0.</summary>
    internal override object NewConversation(long batch = 1) => this;

    internal override Tensor Logits(Tensor ids, int start, object conversation) => ((Transformer)Model).forward(ids, start);

    internal override IEnumerable<(Tensor Keys, Tensor Values)> OwnCaches(object conversation, long batch, int length) =>
        Attentions.Select(attention => (Own(attention, "cache_k", batch, length), Own(attention, "cache_v", batch, length)));

    private static Tensor Own(nn.Module attention, string field, long batch, int length) =>
        ((Tensor)typeof(SelfAttention).GetField(field, BindingFlags.Instance | BindingFlags.NonPublic)!.GetValue(attention)!)
            .narrow(0, 0, batch).narrow(1, 0, length).transpose(1, 2);
}
