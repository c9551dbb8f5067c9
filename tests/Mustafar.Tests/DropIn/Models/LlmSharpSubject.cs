using Mustafar.Tests.DropIn.Models.LlmSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

internal sealed class LlmSharpSubject(int heads, int kvHeads) : Subject(new LlamaModel(heads, kvHeads))
{
    internal override object NewConversation() => Enumerable.Range(0, Layers).Select(IKvCache (_) => new KvCache()).ToList();

    internal override Tensor Logits(Tensor ids, int start, object conversation) =>
        ((LlamaModel)Model).forward(ids, (List<IKvCache>)conversation);
}
