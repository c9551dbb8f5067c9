using Mustafar.Tests.DropIn.Models.LlmSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

internal sealed class LlmSharpSubject(int heads, int kvHeads, ScalarType dtype, bool fast)
    : Subject(new LlamaModel(heads, kvHeads, dtype, fused: fast))
{
    internal override object NewConversation(long batch = 1) => Enumerable.Range(0, Layers)
        .Select(IKvCache (_) => fast ? new FastKvCache(batch, kvHeads, HeadDim, DType) : new KvCache()).ToList();

    internal override Tensor Logits(Tensor ids, int start, object conversation) =>
        ((LlamaModel)Model).forward(ids, (List<IKvCache>)conversation);

    internal override IEnumerable<(Tensor Keys, Tensor Values)> OwnCaches(object conversation, long batch, int length) =>
        ((List<IKvCache>)conversation).Select(cache => cache switch
        {
            FastKvCache reserved => (reserved.k_cache, reserved.v_cache),
            KvCache grown => (grown.k_cache!, grown.v_cache!),
            _ => throw new ArgumentException(cache.GetType().Name),
        }).Select(own => (own.Item1.narrow(1, 0, length).transpose(1, 2), own.Item2.narrow(1, 0, length).transpose(1, 2)));
}
