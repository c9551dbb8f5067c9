using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class BeamSearchTests
{
    private const double Tolerance = 1e-4; // float32 logits, of a batch against one by one

    private static readonly IReadOnlySet<int> s_none = new HashSet<int>();
    private static readonly MustafarOptions s_pruning = new() { LocalWindow = 8, GroupSize = 32 };
    private static readonly int[] s_greedy = Golden.Numbers(Golden.Json.GetProperty("greedy_96"));

    private LlamaForCausalLM _golden = null!;

    [OneTimeSetUp]
    public void Load() => _golden = Golden.LoadModel(Golden.Checkpoint);

    [OneTimeTearDown]
    public void Unload() => _golden.Dispose();

    // As many beams as there are continuations but for the last token, so that none is lost.
    [Test]
    public void EnoughBeamsFindTheBestOfAllContinuations(
        [Values(2, 3, 4)] int maxTokens, [Values(0.0, 1.0, -1.0)] double lengthPenalty, [Values(0, 1, 2)] int stopTokens)
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 5, seed: maxTokens);
        int[] prompt = RandomModel.Prompt(model, 20);
        HashSet<int> stops = [.. Enumerable.Range(1, stopTokens)];
        int beams = (int)Math.Pow(5, maxTokens - 1);
        ReferenceSearch reference = new(tokens => RandomModel.LogProbabilities(model, prompt, tokens), lengthPenalty, maxTokens, stops);
        AssertSame(
            Search(model, prompt, beams, lengthPenalty, maxTokens, stops),
            [.. reference.Exhaustive().Take(beams)]);
    }

    [Test]
    public void BeamsAreThoseOfATextbookOverWholeForwardPasses(
        [Values(2, 4)] int beams, [Values(0.0, 1.0, 2.0)] double lengthPenalty, [Values(0, 1, 3)] int stopTokens, [Values] bool compressed)
    {
        // The prompt and the continuation pass several groups.
        const int maxTokens = 24;
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 12, seed: beams);
        int[] prompt = RandomModel.Prompt(model, 61);
        HashSet<int> stops = [.. Enumerable.Range(3, stopTokens)];
        MustafarOptions? pruning = compressed ? s_pruning : null;
        ReferenceSearch reference = new(
            tokens => RandomModel.LogProbabilities(model, prompt, tokens, pruning), lengthPenalty, maxTokens, stops);
        AssertSame(Search(model, prompt, beams, lengthPenalty, maxTokens, stops, pruning), reference.Beams(beams));
    }

    [Test]
    public void OneBeamIsGreedy([Values] bool compressed, [Values] bool stops)
    {
        int[] prompt = Golden.PromptIds[..128];
        HashSet<int> stopTokens = stops ? [s_greedy[20]] : [];
        using ModelCache alone = compressed ? ModelCache.Mustafar(_golden, new MustafarOptions()) : ModelCache.Dense(_golden);
        int[] greedy = [.. new TokenGenerator(_golden, alone).Generate(prompt, new Sampler(SamplingParameters.Greedy), 96, stopTokens)];
        SearchResult result = Search(_golden, prompt, 1, 1, 96, stopTokens, compressed ? new MustafarOptions() : null);
        Assert.That(result.Hypotheses, Has.Count.EqualTo(1));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Hypotheses[0].Tokens, Is.EqualTo(greedy));
            Assert.That(result.Hypotheses[0].IsStopped, Is.EqualTo(stopTokens.Contains(greedy[^1])));
            Assert.That(result.CachedTokens, Is.EqualTo(128 + greedy.Length - 1));
        }
    }

    [Test]
    public void MoreBeamsFindLikelierContinuationsThanGreedy()
    {
        int[] prompt = Golden.PromptIds[..128];
        double Best(int beams) => Search(_golden, prompt, beams, 0, 24, s_none, new MustafarOptions()).Hypotheses[0].LogProbability;
        Assert.That(Best(4), Is.GreaterThan(Best(1) + 0.5));
    }

    [Test]
    public void TheFirstTokenCanEndEveryContinuation()
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 8, seed: 1);
        int[] prompt = RandomModel.Prompt(model, 10);
        using ModelCache cache = ModelCache.Dense(model);
        BeamSearch search = new(model, cache);
        SearchResult result = search.Search(prompt, new BeamSearchOptions { Beams = 3 }, 20, Enumerable.Range(0, 8).ToHashSet());
        int[] likeliest = [.. RandomModel.LogProbabilities(model, prompt, [])
            .Select((value, token) => (value, token)).OrderByDescending(item => item.value).Take(3).Select(item => item.token)];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Hypotheses.Select(hypothesis => hypothesis.Tokens.Single()), Is.EqualTo(likeliest));
            Assert.That(result.Hypotheses, Has.All.Property(nameof(Hypothesis.IsStopped)).True);
            Assert.That(search.DecodedTokens, Is.Zero);
        }
    }

    [Test]
    public void ContinuationsEndAtTheModelsLongestText()
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 12, seed: 2, maxPositions: 20);
        int[] prompt = RandomModel.Prompt(model, 10);
        using ModelCache cache = ModelCache.Dense(model);
        BeamSearch search = new(model, cache);
        search.Search(prompt, new BeamSearchOptions(), 1, s_none);
        SearchResult result = search.Search(prompt[..6], new BeamSearchOptions { Beams = 3 }, 100, s_none);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Hypotheses.Select(hypothesis => hypothesis.Tokens.Count), Is.EqualTo(new[] { 5, 5, 5 }));
            Assert.That(result.Hypotheses, Has.All.Property(nameof(Hypothesis.IsStopped)).False);
            Assert.That(result.CachedTokens, Is.EqualTo(20));
            Assert.That(cache.Length, Is.EqualTo(16), "two prompts");
            Assert.That(() => search.Search(prompt[..5], new BeamSearchOptions(), 1, s_none), Throws.ArgumentException.With.Message.Contains("at most 4"));
        }
    }

    [Test]
    public void AnotherSearchGoesOnAfterThePromptAlone([Values] bool compressed)
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 12, seed: 3);
        int[] prompt = RandomModel.Prompt(model, 130);
        using ModelCache cache = compressed ? ModelCache.Mustafar(model, s_pruning) : ModelCache.Dense(model);
        using ModelCache untouched = compressed ? ModelCache.Mustafar(model, s_pruning) : ModelCache.Dense(model);
        BeamSearch search = new(model, cache);
        search.Search(prompt[..100], new BeamSearchOptions { Beams = 4 }, 60, s_none);
        new BeamSearch(model, untouched).Search(prompt[..100], new BeamSearchOptions { Beams = 1 }, 1, s_none);
        SearchResult second = search.Search(prompt[100..], new BeamSearchOptions(), 10, s_none);
        SearchResult expected = new BeamSearch(model, untouched).Search(prompt[100..], new BeamSearchOptions(), 10, s_none);
        Assert.That(second.Hypotheses.Select(hypothesis => hypothesis.Tokens), Is.EqualTo(expected.Hypotheses.Select(hypothesis => hypothesis.Tokens)));
        Assert.That(second.Hypotheses[0].Score, Is.EqualTo(expected.Hypotheses[0].Score));
    }

    [Test]
    public void BeamsShareTheCompressedPromptAndLeaveNothingBehind()
    {
        const int beams = 8;
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 12, seed: 4, maxPositions: 4096);
        int[] prompt = RandomModel.Prompt(model, 4000);
        using ModelCache alone = ModelCache.Mustafar(model, new MustafarOptions());
        _ = new TokenGenerator(model, alone).Generate(prompt, new Sampler(SamplingParameters.Greedy), 20, s_none).Count();
        using ModelCache cache = ModelCache.Mustafar(model, new MustafarOptions());
        BeamSearch search = new(model, cache);
        SearchResult result = search.Search(prompt, new BeamSearchOptions { Beams = beams }, 20, s_none);
        KeyValueCacheMemory one = alone.Memory;
        long used = cache.Cache.Usage.UsedBytes, occupied = cache.Memory.TotalBytes;
        long tensors = Tensor.TotalCount;
        cache.Clear();
        search.Search(prompt, new BeamSearchOptions { Beams = beams }, 20, s_none);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Memory.CompressedBytes, Is.LessThan(1.1 * one.CompressedBytes), "pages of one cache");
            Assert.That(result.Memory.TotalBytes, Is.LessThan(0.3 * beams * one.TotalBytes));
            Assert.That(result.Memory.Fp16Bytes, Is.EqualTo(beams * one.Fp16Bytes));
            Assert.That(used, Is.LessThanOrEqualTo(alone.Cache.Usage.UsedBytes), "the beams gave their part back");
            Assert.That(cache.Memory.TotalBytes, Is.EqualTo(occupied), "and other beams took it");
            Assert.That(Tensor.TotalCount, Is.EqualTo(tensors));
        }
    }

    [Test]
    public void CancellingLeavesThePrompt()
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 12, seed: 5);
        using ModelCache cache = ModelCache.Mustafar(model, s_pruning);
        BeamSearch search = new(model, cache);
        search.Search(RandomModel.Prompt(model, 48), new BeamSearchOptions(), 50, s_none); // makes all pages that are needed
        search.Search([3, 4], new BeamSearchOptions(), 50, s_none); // and the workspace of a step of two tokens
        long tensors = Tensor.TotalCount;
        using CancellationTokenSource source = new();
        int steps = 0;
        Assert.That(
            () => search.Search(
                [1, 2],
                new BeamSearchOptions(),
                50,
                s_none,
                tokens =>
                {
                    steps = tokens;
                    if (tokens == 4)
                    {
                        source.Cancel();
                    }
                },
                source.Token),
            Throws.InstanceOf<OperationCanceledException>());
        using (Assert.EnterMultipleScope())
        {
            Assert.That(steps, Is.EqualTo(4));
            Assert.That(cache.Length, Is.EqualTo(52));
            Assert.That(Tensor.TotalCount, Is.EqualTo(tensors));
            Assert.That(() => search.Search([1], new BeamSearchOptions(), 5, s_none, null, source.Token), Throws.InstanceOf<OperationCanceledException>());
            Assert.That(cache.Length, Is.EqualTo(52));
        }
    }

    [Test]
    public void RefusesWhatItCannotDo()
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 12, seed: 6);
        using ModelCache cache = ModelCache.Dense(model);
        using ModelCache pair = ModelCache.Dense(model, batchSize: 2);
        BeamSearch search = new(model, cache);
        BeamSearchOptions options = new();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => new BeamSearch(model, pair), Throws.ArgumentException.With.Message.Contains("one sequence").And.Message.Contains("got 2"));
            Assert.That(() => new BeamSearchOptions { Beams = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>().With.Message.Contains("Beams"));
            Assert.That(() => new BeamSearchOptions { LengthPenalty = double.NaN }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => search.Search([], options, 1, s_none), Throws.ArgumentException.With.Message.Contains("empty"));
            Assert.That(() => search.Search([12], options, 1, s_none), Throws.ArgumentException.With.Message.Contains("12"));
            Assert.That(() => search.Search([1], options, 0, s_none), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(cache.Length, Is.Zero);
        }
    }

    [Test]
    public void ImpossibleTokensAreNoContinuations()
    {
        const float no = float.NegativeInfinity;
        BeamSelection selection = new(new BeamSearchOptions { Beams = 3 }, new HashSet<int> { 2 });
        selection.Advance([1, no, 1, no, 0], isLast: false);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(selection.Running.Select(beam => beam.Token), Is.EqualTo(new[] { 0, 4 }));
            Assert.That(selection.Ended.Single().Tokens, Is.EqualTo(new[] { 2 }));
            Assert.That(() => selection.Advance([0, 0, 0, 0, 0, 0, float.NaN, 0, 0, 0], isLast: false), Throws.ArgumentException);
        }

        selection.Advance([0, no, no, no, 0, no, no, 3, no, no], isLast: false);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(selection.Running.Select(beam => beam.Tokens), Is.EqualTo(new[] { new[] { 0, 0 }, [0, 4] }), "equals by token");
            Assert.That(selection.Running, Has.All.Property(nameof(Beam.Parent)).Zero);
            Assert.That(selection.Ended.Select(hypothesis => hypothesis.Tokens), Has.One.EqualTo(new[] { 4, 2 }));
        }
    }

    private static SearchResult Search(
        LlamaForCausalLM model, int[] prompt, int beams, double lengthPenalty, int maxTokens, IReadOnlySet<int> stops, MustafarOptions? pruning = null)
    {
        using ModelCache cache = pruning is null ? ModelCache.Dense(model) : ModelCache.Mustafar(model, pruning);
        SearchResult result = new BeamSearch(model, cache).Search(
            prompt, new BeamSearchOptions { Beams = beams, LengthPenalty = lengthPenalty }, maxTokens, stops);
        Assert.That(cache.Lengths, Is.EqualTo(new[] { prompt.Length }), "the given caches end with the prompt");
        return result;
    }

    private static void AssertSame(SearchResult actual, List<ReferenceSearch.Found> expected)
    {
        Assert.That(actual.Hypotheses.Select(hypothesis => hypothesis.Tokens), Is.EqualTo(expected.Select(found => found.Tokens)));
        Assert.That(
            actual.Hypotheses.Select(hypothesis => hypothesis.LogProbability),
            Is.EqualTo(expected.Select(found => found.Sum)).Within(Tolerance));
        Assert.That(actual.Hypotheses.Select(hypothesis => hypothesis.Score), Is.EqualTo(expected.Select(found => found.Score)).Within(Tolerance));
    }
}
