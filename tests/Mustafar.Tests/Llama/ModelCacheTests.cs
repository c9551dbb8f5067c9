using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class ModelCacheTests
{
    [Test]
    public void AForkGoesOnAsItsParentsWould([Values] bool compressed)
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 20, seed: 1);
        int[][] prompts = [RandomModel.Prompt(model, 90, seed: 1), RandomModel.Prompt(model, 75, seed: 2)];
        int[] parents = [1, 0, 1];
        using ModelCache cache = NewCache(model, compressed, 2);
        using ModelCache expected = NewCache(model, compressed, 3);
        _ = Next(model, cache, prompts);
        _ = Next(model, expected, [.. parents.Select(parent => prompts[parent])]);
        using ModelCache fork = cache.Fork(parents);
        Assert.That(fork.Lengths, Is.EqualTo(new[] { 75, 90, 75 }));
        Assert.That(fork.Layers.Select(layer => layer.GetType()), Is.EqualTo(cache.Layers.Select(layer => layer.GetType())));
        Assert.That(Next(model, fork, [[3], [4], [5]]), Is.EqualTo(Next(model, expected, [[3], [4], [5]])));
        Assert.That(cache.Lengths, Is.EqualTo(new[] { 90, 75 }));
    }

    [Test]
    public void NothingIsLeftOfAForkThatFails()
    {
        using ModelCache cache = new(
        [
            new DenseCache(1, 1, 64, ScalarType.Float32, CPU, capacity: 64),
            new PrunedDenseCache(1, 64, new MustafarOptions()),
        ]);
        long tensors = Tensor.TotalCount;
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => cache.Fork([0, 0]), Throws.TypeOf<NotSupportedException>().With.Message.Contains(nameof(PrunedDenseCache)));
            Assert.That(() => cache.Fork([]), Throws.ArgumentException);
            Assert.That(() => cache.Fork([1]), Throws.InstanceOf<ArgumentException>());
            Assert.That(Tensor.TotalCount, Is.EqualTo(tensors));
        }
    }

    private static ModelCache NewCache(LlamaForCausalLM model, bool compressed, int batchSize) => compressed
        ? ModelCache.Mustafar(model, new MustafarOptions { LocalWindow = 8, GroupSize = 32 }, batchSize)
        : ModelCache.Dense(model, batchSize);

    private static float[] Next(LlamaForCausalLM model, ModelCache cache, int[][] tokens)
    {
        using DisposeScope scope = NewDisposeScope();
        using IDisposable mode = inference_mode();
        return model.NextTokenLogits(
            TokenIds.ToPaddedTensor(tokens, CPU), cache, [.. tokens.Select(ids => ids.Length)]).data<float>().ToArray();
    }
}
