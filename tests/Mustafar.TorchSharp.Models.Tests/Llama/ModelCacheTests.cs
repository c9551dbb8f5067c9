using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class ModelCacheTests
{
    private static readonly MustafarOptions s_pruning = new() { LocalWindow = 8, GroupSize = 32 };

    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void MakeModel() => _model = RandomModel.New(vocabSize: 20, seed: 1);

    [OneTimeTearDown]
    public void DisposeModel() => _model.Dispose();

    [Test]
    public void AForkGoesOnAsItsParentsWould([Values] bool compressed)
    {
        int[][] prompts = Prompts(90, 75);
        int[] parents = [1, 0, 1];
        using ModelCache cache = NewCache(compressed, 2);
        using ModelCache expected = NewCache(compressed, 3);
        _ = Next(cache, prompts);
        _ = Next(expected, [.. parents.Select(parent => prompts[parent])]);
        using ModelCache fork = cache.Fork(parents);
        Assert.That(fork.Lengths, Is.EqualTo(new[] { 75, 90, 75 }));
        Assert.That(fork.Cache, Is.SameAs(cache.Cache));
        Assert.That(Next(fork, [[3], [4], [5]]), Is.EqualTo(Next(expected, [[3], [4], [5]])));
        Assert.That(cache.Lengths, Is.EqualTo(new[] { 90, 75 }));
    }

    // Some beams go on twice or more, some not at all, and their number changes.
    [Test]
    public void AReorderedBatchGoesOnAsItsParentsWould([Values] bool compressed)
    {
        const int seed = 5;
        Random random = new(seed);
        List<int>[] texts = [.. Prompts(60, 40, 75).Select(prompt => prompt.ToList())];
        using ModelCache text = NewCache(compressed, 1);
        _ = Next(text, Prompts(50));
        using ModelCache batch = text.Fork([0, 0, 0]);
        batch.Clear();
        _ = Next(batch, [.. texts.Select(ids => ids.ToArray())]);
        for (int i = 0; i < 12; i++)
        {
            int[] parents = [.. Enumerable.Range(0, random.Next(1, 5)).Select(_ => random.Next(texts.Length))];
            int[] next = [.. parents.Select(_ => random.Next(20))];
            batch.Reorder(parents);
            texts = [.. parents.Zip(next, (parent, id) => (List<int>)[.. texts[parent], id])];
            float[] actual = Next(batch, [.. next.Select(id => new[] { id })]);
            Assert.That(batch.Lengths, Is.EqualTo(texts.Select(ids => ids.Count)), $"seed {seed}, step {i}");
            Assert.That(batch.Cache.Sequences, Is.EquivalentTo((int[])[.. text.Sequences, .. batch.Sequences]));
            if (!compressed)
            {
                using ModelCache alone = NewCache(compressed: false, texts.Length);
                Assert.That(actual, Is.EqualTo(Next(alone, [.. texts.Select(ids => ids.ToArray())])).Within(1e-4), $"seed {seed}, step {i}");
            }
        }

        Assert.That(text.Lengths, Is.EqualTo(new[] { 50 }));
    }

    [Test]
    public void SequencesHaveNoRoomInVain([Values] bool compressed, [Values(1, 3, 11)] int batchSize)
    {
        using ModelCache one = NewCache(compressed, 1), cache = NewCache(compressed, batchSize);
        int[][] tokens = [.. Enumerable.Repeat<int[]>([1, 2, 3], batchSize)];
        _ = Next(one, tokens[..1]);
        _ = Next(cache, tokens);
        KeyValueCacheMemory expected = one.Memory;
        Assert.That(cache.Memory, Is.EqualTo(new KeyValueCacheMemory(
            cache.Memory.CompressedBytes, batchSize * expected.WindowBytes, batchSize * expected.UsedBytes, batchSize * expected.DenseBytes, batchSize * expected.Fp16Bytes)));
        using ModelCache fork = cache.Fork([0, 0]);
        Assert.That(fork.Memory.WindowBytes, Is.EqualTo((batchSize + 2) * expected.WindowBytes));
        Assert.That(fork.Memory.DenseBytes, Is.EqualTo(2 * expected.DenseBytes), "its own tokens");
        Assert.That(one.Memory.DenseBytes, Is.EqualTo(2 * 2 * 64 * sizeof(float) * 3), "2 layers of 1 head of 64");
    }

    [Test]
    public void TheCacheLivesAsLongAsAFork()
    {
        ModelCache cache = NewCache(compressed: true, 1);
        _ = Next(cache, Prompts(90));
        ModelKeyValueCache library = cache.Cache;
        ModelCache fork = cache.Fork([0]);
        cache.Dispose();
        cache.Dispose();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => cache.Length, Throws.TypeOf<ObjectDisposedException>());
            Assert.That(library.Sequences, Is.EqualTo(fork.Sequences));
            Assert.That(fork.Length, Is.EqualTo(90));
        }

        fork.Dispose();
        Assert.That(() => library.Memory, Throws.TypeOf<ObjectDisposedException>());
    }

    [Test]
    public async Task ASavedBatchGoesOnAsItWould()
    {
        using TemporaryDirectory directory = new();
        string path = directory.File("texts");
        using ModelCache cache = NewCache(compressed: true, 2), restored = NewCache(compressed: true, 2);
        _ = Next(cache, Prompts(90, 75));
        List<double> saved = [], loaded = [];
        await cache.SaveAsync(path, "model", new Dictionary<string, string> { ["title"] = "two" }, new Shares(saved.Add));
        IReadOnlyDictionary<string, string> metadata = await restored.LoadAsync(path, "model", new Shares(loaded.Add));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(metadata, Is.EqualTo(new Dictionary<string, string> { ["title"] = "two" }));
            Assert.That(saved, Is.Ordered.And.Member(1.0));
            Assert.That(loaded, Is.Ordered.And.Member(1.0));
            Assert.That(restored.Lengths, Is.EqualTo(new[] { 90, 75 }));
            Assert.That(Next(restored, [[3], [4]]), Is.EqualTo(Next(cache, [[3], [4]])));
        }
    }

    [Test]
    public async Task SavingThatFailsOrIsCancelledFailsInItsTask()
    {
        using TemporaryDirectory directory = new();
        string path = directory.File("text");
        using ModelCache cache = NewCache(compressed: true, 1), dense = NewCache(compressed: false, 1), empty = NewCache(compressed: true, 1);
        _ = Next(cache, Prompts(90));
        using CancellationTokenSource source = new();
        Task saving = cache.SaveAsync(path, "model", progress: new Shares(_ => source.Cancel()), cancellationToken: source.Token);
        Task unsupported = dense.SaveAsync(path, "model");
        Assert.That(async () => await saving, Throws.InstanceOf<OperationCanceledException>());
        Assert.That(async () => await unsupported, Throws.TypeOf<NotSupportedException>());
        Assert.That(path, Does.Not.Exist);
        await cache.SaveAsync(path, "model");
        Task refused = empty.LoadAsync(path, "another"), stopped = empty.LoadAsync(path, "model", cancellationToken: new CancellationToken(true));
        Assert.That(async () => await refused, Throws.TypeOf<MustafarCacheFileException>());
        Assert.That(async () => await stopped, Throws.InstanceOf<OperationCanceledException>());
        Assert.That(empty.Length, Is.Zero);
    }

    [Test]
    public void NothingIsLeftOfAForkThatFails()
    {
        using ModelCache cache = new(new DenseModelCache(2, new() { NumKvHeads = 1, HeadDim = 64 }, ScalarType.Float32, limits: new CacheLimits { MaxSequences = 2 }));
        _ = Next(cache, Prompts(20));
        long tensors = Tensor.TotalCount;
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => cache.Fork([0, 0]), Throws.TypeOf<CacheLimitException>().With.Message.Contains("at most 2"));
            Assert.That(() => cache.Fork([]), Throws.ArgumentException);
            Assert.That(() => cache.Fork([1]), Throws.InstanceOf<ArgumentException>());
            Assert.That(() => cache.Reorder([0, 0, 0]), Throws.TypeOf<CacheLimitException>());
            Assert.That(() => new ModelCache(cache.Cache, 2), Throws.TypeOf<CacheLimitException>());
            Assert.That(cache.Cache.Sequences, Is.EqualTo(cache.Sequences));
            Assert.That(cache.Lengths, Is.EqualTo(new[] { 20 }));
            Assert.That(Tensor.TotalCount, Is.EqualTo(tensors));
        }
    }

    // After the first of two layers.
    [Test]
    public void AStepThatFailsOrIsCancelledLeavesTheCacheAsItWas([Values] bool compressed, [Values] bool cancelled)
    {
        using ModelCache cache = NewCache(compressed, 2), untouched = NewCache(compressed, 2);
        Assert.That(Next(cache, Prompts(90, 75)), Is.EqualTo(Next(untouched, Prompts(90, 75))));
        nn.Module<Tensor, Tensor> mlp = (nn.Module<Tensor, Tensor>)_model.named_modules().Single(item => item.name == "model.layers.0.mlp").module;
        // With weights apart from each other the MLP is called as a module, which hooks see.
        using (no_grad())
        using (Tensor gate = mlp.named_parameters().Single(item => item.name == "gate_proj.weight").parameter.clone())
        {
            _ = mlp.named_parameters().Single(item => item.name == "gate_proj.weight").parameter.set_(gate);
        }

        CancellationTokenSource source = new();
        var hook = mlp.register_forward_hook((_, _, output) =>
        {
            source.Cancel();
            return cancelled ? output : throw new InvalidOperationException("a layer that fails");
        });
        try
        {
            foreach (int tokens in new[] { 1, 5, 100 })
            {
                using DisposeScope scope = NewDisposeScope();
                Assert.That(
                    () => _model.Hidden(TokenIds.ToPaddedTensor(Prompts(tokens, tokens), CPU), cache, default, source.Token),
                    cancelled ? Throws.TypeOf<OperationCanceledException>() : Throws.InvalidOperationException.With.Message.Contains("fails"));
                source.Dispose();
                source = new CancellationTokenSource();
            }
        }
        finally
        {
            source.Dispose();
            hook.remove();
        }

        Assert.That(cache.Lengths, Is.EqualTo(new[] { 90, 75 }));
        Assert.That(Next(cache, [[3], [4]]), Is.EqualTo(Next(untouched, [[3], [4]])));
    }

    private int[][] Prompts(params int[] lengths) =>
        [.. lengths.Select((length, i) => RandomModel.Prompt(_model, length, seed: i + 1))];

    private ModelCache NewCache(bool compressed, int batchSize) =>
        compressed ? ModelCache.Mustafar(_model, s_pruning, batchSize) : ModelCache.Dense(_model, batchSize);

    private float[] Next(ModelCache cache, int[][] tokens)
    {
        using DisposeScope scope = NewDisposeScope();
        using IDisposable mode = inference_mode();
        return _model.NextTokenLogits(
            TokenIds.ToPaddedTensor(tokens, CPU), cache, [.. tokens.Select(ids => ids.Length)]).data<float>().ToArray();
    }

    // At once, on the thread that reports.
    private sealed class Shares(Action<double> report) : IProgress<double>
    {
        public void Report(double value) => report(value);
    }
}
