using Mustafar.Tests.DropIn.Models.TorchsharpLlama;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

internal sealed class TorchsharpLlamaSubject(int heads, int kvHeads) : Subject(new Transformer(heads, kvHeads))
{
    /// <summary>The model has one conversation at a time, which begins at position 0.</summary>
    internal override object NewConversation() => this;

    internal override Tensor Logits(Tensor ids, int start, object conversation) => ((Transformer)Model).forward(ids, start);
}
