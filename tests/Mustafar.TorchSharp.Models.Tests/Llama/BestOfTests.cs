using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class BestOfTests
{
    private static readonly IReadOnlySet<int> s_none = new HashSet<int>();
    private static readonly MustafarOptions s_pruning = new() { LocalWindow = 8, GroupSize = 32 };

    private LlamaForCausalLM _model = null!;
    private int[] _prompt = null!;

    [OneTimeSetUp]
    public void Load()
    {
        _model = RandomModel.New(vocabSize: 40, seed: 1);
        _prompt = RandomModel.Prompt(_model, 100);
    }

    [OneTimeTearDown]
    public void Unload() => _model.Dispose();

    [Test]
    public void ContinuationsAreThoseOfEachSamplerAlone([Values(1, 5)] int count, [Values] bool compressed)
    {
        const int maxTokens = 70;
        HashSet<int> stops = [7];
        using ModelCache cache = NewCache(compressed);
        BestOf generator = new(_model, cache);
        SearchResult result = generator.Generate(_prompt, Samplers(count), maxTokens, stops);
        List<int[]> expected = [];
        foreach (Sampler sampler in Samplers(count))
        {
            using ModelCache alone = NewCache(compressed);
            expected.Add([.. new TokenGenerator(_model, alone).Generate(_prompt, sampler, maxTokens, stops)]);
        }

        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Hypotheses.Select(hypothesis => hypothesis.Tokens), Is.EquivalentTo(expected));
            Assert.That(result.Hypotheses.Select(hypothesis => hypothesis.Score), Is.Ordered.Descending);
            Assert.That(generator.DecodedTokens, Is.EqualTo(expected.Sum(tokens => tokens.Length - 1)));
            Assert.That(result.CachedTokens, Is.EqualTo(100 + expected.Max(tokens => tokens.Length) - 1));
            Assert.That(cache.Length, Is.EqualTo(100), "the given caches end with the prompt");
            Assert.That(expected.Select(tokens => tokens.Length).Distinct().Count(), Is.GreaterThanOrEqualTo(Math.Min(count, 3)), "not all end at once");
        }
    }

    // The probabilities are the model's own, whatever the temperature and top-k did to those that were drawn from.
    [Test]
    public void ScoresAreMeanLogProbabilitiesUnderTheModel([Values] bool compressed)
    {
        HashSet<int> stops = [7];
        using ModelCache cache = NewCache(compressed);
        foreach (Hypothesis hypothesis in new BestOf(_model, cache).Generate(_prompt, Samplers(3), 30, stops).Hypotheses)
        {
            double sum = 0;
            int[] tokens = [.. hypothesis.Tokens];
            for (int i = 0; i < tokens.Length; i++)
            {
                sum += RandomModel.LogProbabilities(_model, _prompt, tokens[..i], compressed ? s_pruning : null)[tokens[i]];
            }

            using (Assert.EnterMultipleScope())
            {
                Assert.That(hypothesis.LogProbability, Is.EqualTo(sum).Within(1e-4));
                Assert.That(hypothesis.Score, Is.EqualTo(sum / tokens.Length).Within(1e-4));
                Assert.That(hypothesis.IsStopped, Is.EqualTo(stops.Contains(tokens[^1])));
            }
        }
    }

    [Test]
    public void TheFirstTokenCanEndEveryContinuation()
    {
        using ModelCache cache = NewCache(compressed: true);
        BestOf generator = new(_model, cache);
        SearchResult result = generator.Generate(_prompt, Samplers(4), 30, Enumerable.Range(0, 40).ToHashSet());
        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Hypotheses, Has.Count.EqualTo(4).And.All.Property(nameof(Hypothesis.IsStopped)).True);
            Assert.That(result.Hypotheses.Select(hypothesis => hypothesis.Tokens.Count), Has.All.EqualTo(1));
            Assert.That(generator.DecodedTokens, Is.Zero);
        }
    }

    [Test]
    public void ContinuationsEndAtTheModelsLongestText()
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 40, seed: 1, maxPositions: 20);
        using ModelCache cache = ModelCache.Dense(model);
        SearchResult result = new BestOf(model, cache).Generate(_prompt[..16], Samplers(3), 100, s_none);
        Assert.That(result.Hypotheses.Select(hypothesis => hypothesis.Tokens.Count), Is.EqualTo(new[] { 5, 5, 5 }));
    }

    [Test]
    public void CancellingLeavesThePrompt()
    {
        using ModelCache cache = NewCache(compressed: true);
        BestOf generator = new(_model, cache);
        generator.Generate(_prompt[..98], Samplers(3), 50, s_none); // makes all pages that are needed
        generator.Generate(_prompt[98..], Samplers(3), 50, s_none); // and the workspace of a step of two tokens
        long tensors = Tensor.TotalCount;
        using CancellationTokenSource source = new();
        Assert.That(
            () => generator.Generate([1, 2], Samplers(3), 50, s_none, tokens => Cancel(tokens), source.Token),
            Throws.InstanceOf<OperationCanceledException>());
        using (Assert.EnterMultipleScope())
        {
            Assert.That(generator.DecodedTokens, Is.EqualTo((3 * 49 * 2) + (3 * 3)));
            Assert.That(cache.Length, Is.EqualTo(102));
            Assert.That(Tensor.TotalCount, Is.EqualTo(tensors));
        }

        void Cancel(int tokens)
        {
            if (tokens == 4)
            {
                source.Cancel();
            }
        }
    }

    [Test]
    public void RefusesWhatItCannotDo()
    {
        using ModelCache cache = NewCache(compressed: true);
        using ModelCache pair = ModelCache.Dense(_model, batchSize: 2);
        BestOf generator = new(_model, cache);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => new BestOf(_model, pair), Throws.ArgumentException.With.Message.Contains("one sequence"));
            Assert.That(() => generator.Generate(_prompt, [], 1, s_none), Throws.ArgumentException.With.Message.Contains("sampler"));
            Assert.That(() => generator.Generate([], Samplers(1), 1, s_none), Throws.ArgumentException.With.Message.Contains("empty"));
            Assert.That(() => generator.Generate(_prompt, Samplers(1), 0, s_none), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(cache.Length, Is.Zero);
        }
    }

    private static Sampler[] Samplers(int count) =>
        [.. Enumerable.Range(0, count).Select(i => new Sampler(new SamplingParameters { Temperature = 0.8, TopK = 20, Seed = (ulong)(5 + i) }))];

    private ModelCache NewCache(bool compressed) => compressed ? ModelCache.Mustafar(_model, s_pruning) : ModelCache.Dense(_model);
}
