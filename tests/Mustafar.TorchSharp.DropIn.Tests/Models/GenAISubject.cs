using Mustafar.Tests.DropIn.Models.GenAI;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

internal sealed class GenAISubject(
    int heads, int kvHeads, Positions positions, ScalarType dtype, bool joint = false, bool first = false)
    : Subject(new LlamaForCausalLM(heads, kvHeads, positions, dtype, joint, first: first))
{
    internal override object NewConversation(long batch = 1) => new DynamicKVCache();

    /// <summary>A single token comes without a mask, with that of the past or with its own part alone, as callers do it.</summary>
    internal override Tensor Logits(Tensor ids, int start, object conversation)
    {
        Tensor? mask = (ids.shape[1], start % 3) switch
        {
            (1, 0) => null,
            (1, 1) => zeros(ids.shape[0], 1, 1, 1, dtype: DType),
            _ => LlamaForCausalLM.CausalMask(ids, start, dtype: DType),
        };
        return ((LlamaForCausalLM)Model).Logits(ids, start, (IKVCache)conversation, mask);
    }

    internal override IEnumerable<(Tensor Keys, Tensor Values)> OwnCaches(object conversation, long batch, int length) =>
        ((DynamicKVCache)conversation).Values;
}
