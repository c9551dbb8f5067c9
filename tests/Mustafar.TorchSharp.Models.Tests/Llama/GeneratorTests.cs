using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class GeneratorTests
{
    private static readonly int[] s_greedy = Golden.Numbers(Golden.Json.GetProperty("greedy_96"));

    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void Load() => _model = Golden.LoadModel(Golden.Checkpoint);

    [OneTimeTearDown]
    public void Unload() => _model.Dispose();

    [Test]
    public void StopsAfterAStopToken()
    {
        int stop = s_greedy[5];
        int expected = Array.IndexOf(s_greedy, stop) + 1;
        using ModelCache cache = ModelCache.Dense(_model);
        int[] tokens = [.. Generate(cache, Golden.PromptIds[..128], 96, stop)];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(tokens, Is.EqualTo(s_greedy[..expected]));
            Assert.That(cache.Length, Is.EqualTo(128 + expected - 1), "the last token is not fed back");
        }
    }

    [Test]
    public void ATextGoesOnOverTheSameCache()
    {
        using ModelCache cache = ModelCache.Dense(_model);
        int[] first = [.. Generate(cache, Golden.PromptIds[..128], 10)];
        int[] second = [.. Generate(cache, first[^1..], 10)];
        Assert.That(first.Concat(second), Is.EqualTo(s_greedy[..20]));
    }

    // Prompts of different lengths, of which some end before others, and each with its own random numbers.
    [TestCase(false)]
    [TestCase(true)]
    public void TextsSideBySideAreThoseOneByOne(bool compressed)
    {
        int[] lengths = [130, 1, 77, 64];
        int[][] prompts = [.. lengths.Select((length, i) => Golden.PromptIds[(i * 3)..((i * 3) + length)])];
        HashSet<int> stops = [.. Golden.PromptIds.CountBy(id => id).OrderByDescending(pair => pair.Value).Skip(3).Take(4).Select(pair => pair.Key)];
        const int maxTokens = 70;
        Sampler NewSampler(int i) => new(new SamplingParameters { Temperature = i % 2 == 0 ? 0 : 0.7, Seed = (ulong)i });
        ModelCache NewCache(int batch) => compressed
            ? ModelCache.Mustafar(_model, new MustafarOptions { GroupSize = 32 }, batch)
            : ModelCache.Dense(_model, batch);
        using ModelCache together = NewCache(prompts.Length);
        List<int>[] texts = [.. prompts.Select(_ => new List<int>())];
        TokenGenerator generator = new(_model, together);
        foreach (SequenceToken item in generator.Generate(prompts, [.. prompts.Select((_, i) => NewSampler(i))], maxTokens, stops))
        {
            texts[item.Sequence].Add(item.Token);
        }

        for (int i = 0; i < prompts.Length; i++)
        {
            using ModelCache alone = NewCache(1);
            int[] expected = [.. new TokenGenerator(_model, alone).Generate(prompts[i], NewSampler(i), maxTokens, stops)];
            using (Assert.EnterMultipleScope())
            {
                Assert.That(texts[i], Is.EqualTo(expected), $"sequence {i}");
                Assert.That(together.Lengths[i], Is.EqualTo(alone.Length), "no padding, and nothing behind a text's end");
                Assert.That(together.Lengths[i], Is.EqualTo(lengths[i] + expected.Length - 1));
            }
        }

        Assert.That(texts.Select(text => text.Count), Has.Some.EqualTo(maxTokens).And.Some.LessThan(maxTokens), "some end early");
        Assert.That(generator.DecodedTokens, Is.EqualTo(texts.Sum(text => text.Count - 1)));
    }

    [Test]
    public void StopsAtTheModelsLongestText()
    {
        using LlamaForCausalLM shortModel = RandomModel.New(vocabSize: 20, seed: 1, maxPositions: 20);
        using ModelCache cache = ModelCache.Dense(shortModel);
        TokenGenerator generator = new(shortModel, cache);
        int[] tokens = [.. generator.Generate(RandomModel.Prompt(shortModel, 16), new Sampler(SamplingParameters.Greedy), 100, new HashSet<int>())];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(tokens, Has.Length.EqualTo(5));
            Assert.That(cache.Length, Is.EqualTo(20));
            Assert.That(generator.DecodedTokens, Is.EqualTo(4));
        }
    }

    [Test]
    public void RefusesPromptsThatDoNotFit()
    {
        using LlamaForCausalLM shortModel = RandomModel.New(vocabSize: 20, seed: 1, maxPositions: 20);
        using ModelCache cache = ModelCache.Dense(shortModel);
        using ModelCache pair = ModelCache.Dense(shortModel, batchSize: 2);
        TokenGenerator generator = new(shortModel, cache);
        Sampler sampler = new(SamplingParameters.Greedy);
        IReadOnlySet<int> none = new HashSet<int>();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => generator.Generate([], sampler, 1, none), Throws.ArgumentException.With.Message.Contains("empty"));
            Assert.That(() => generator.Generate(new int[21], sampler, 1, none), Throws.ArgumentException.With.Message.Contains("at most 20"));
            Assert.That(() => generator.Generate([1, 8192], sampler, 1, none), Throws.ArgumentException.With.Message.Contains("8192"));
            Assert.That(() => generator.Generate([1, -1], sampler, 1, none), Throws.ArgumentException.With.Message.Contains("-1"));
            Assert.That(() => generator.Generate([1], sampler, -1, none), Throws.TypeOf<ArgumentOutOfRangeException>());
            TokenGenerator both = new(shortModel, pair);
            Assert.That(() => both.Generate([1], sampler, 1, none), Throws.ArgumentException.With.Message.Contains("2 sequences"));
            Assert.That(() => both.Generate([[1], [2]], [sampler], 1, none), Throws.ArgumentException.With.Message.Contains("sampler"));
            Assert.That(() => both.Generate([[1], []], [sampler, sampler], 1, none), Throws.ArgumentException.With.Message.Contains("empty"));
            Assert.That(pair.Length, Is.Zero);
            Assert.That(cache.Length, Is.Zero);
        }
    }

    [Test]
    public void StopsWhenCancelled()
    {
        using CancellationTokenSource source = new();
        using ModelCache cache = ModelCache.Dense(_model);
        TokenGenerator generator = new(_model, cache);
        List<int> tokens = [];
        Assert.That(
            () =>
            {
                foreach (int token in generator.Generate(
                    Golden.PromptIds[..8], new Sampler(SamplingParameters.Greedy), 50, new HashSet<int>(), source.Token))
                {
                    tokens.Add(token);
                    source.Cancel();
                }
            },
            Throws.InstanceOf<OperationCanceledException>());
        Assert.That(tokens, Has.Count.EqualTo(1));
    }

    [Test]
    public void StepsLeaveNoTensorsBehind()
    {
        using ModelCache cache = ModelCache.Dense(_model);
        TokenGenerator generator = new(_model, cache);
        List<long> counts = [];
        foreach (int _ in generator.Generate(Golden.PromptIds[..16], new Sampler(SamplingParameters.Greedy), 40, new HashSet<int>()))
        {
            counts.Add(Tensor.TotalCount);
        }

        using (Assert.EnterMultipleScope())
        {
            Assert.That(counts[2..], Is.All.EqualTo(counts[1]));
            Assert.That(Tensor.TotalCount, Is.LessThan(counts[1]), "what chooses the tokens is gone too");
        }
    }

    private IEnumerable<int> Generate(ModelCache cache, int[] prompt, int maxTokens, params int[] stopTokens) =>
        new TokenGenerator(_model, cache).Generate(prompt, new Sampler(SamplingParameters.Greedy), maxTokens, stopTokens.ToHashSet());
}
