using Mustafar.Tests.DropIn.Models.GenAI;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

internal sealed class GenAISubject(int heads, int kvHeads, bool joint) : Subject(new LlamaForCausalLM(heads, kvHeads, joint))
{
    internal override object NewConversation() => new DynamicKVCache();

    internal override Tensor Logits(Tensor ids, int start, object conversation)
    {
        LlamaForCausalLM model = (LlamaForCausalLM)Model;
        Tensor? mask = ids.shape[1] == 1 && start % 2 == 0
            ? null
            : LlamaForCausalLM.CausalMask(ids, start, dtype: model.parameters().First().dtype);
        return model.Logits(ids, start, (IKVCache)conversation, mask);
    }
}
