using Mustafar.Models.Chat;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Tests.Llama;

/// <summary>Prompts that have beginnings in common, over one cache.</summary>
[TestFixture]
internal sealed class PromptCacheTests
{
    private const int VocabSize = 40;

    private static readonly HashSet<int> s_noStop = [];

    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void MakeModel() => _model = RandomModel.New(VocabSize, seed: 3);

    [OneTimeTearDown]
    public void DisposeModel() => _model.Dispose();

    // Longer ones, shorter ones, edits anywhere, the same one again, others.
    [Test]
    public void AnyPromptIsContinuedAsOverAnEmptyCache()
    {
        const int seed = 7;
        Random random = new(seed);
        using PromptCache cache = new(_model, ModelCache.Dense(_model));
        for (int i = 0; i < 60; i++)
        {
            int[] prompt = Next(random, [.. cache.Ids]);
            int common = prompt.Zip(cache.Ids).TakeWhile(pair => pair.First == pair.Second).Count();
            int maxTokens = random.Next(1, 12);
            int[] tokens = [.. cache.Generate(prompt, Penalising(), maxTokens, s_noStop)];
            using ModelCache empty = ModelCache.Dense(_model);
            int[] expected = [.. new TokenGenerator(_model, empty).Generate(prompt, Penalising(), maxTokens, s_noStop)];
            using (Assert.EnterMultipleScope())
            {
                Assert.That(tokens, Is.EqualTo(expected), $"seed {seed}, prompt {i}");
                Assert.That(cache.ReusedTokens, Is.EqualTo(Math.Min(common, prompt.Length - 1)));
                Assert.That(cache.Ids, Is.EqualTo((int[])[.. prompt, .. tokens[..^1]]));
            }
        }
    }

    // With windows and eviction, tokens may be gone that a shorter text would see.
    [TestCase(0, null, null)]
    [TestCase(32, null, null)]
    [TestCase(0, 40, null)]
    [TestCase(32, 100, null)]
    [TestCase(32, null, 40)]
    public void ACompressedCacheAlwaysHoldsTheTokensThatItTells(int localWindow, int? slidingWindow, int? capacity)
    {
        const int seed = 8;
        Random random = new(seed);
        MustafarOptions options = new()
        {
            LocalWindow = localWindow, GroupSize = 32, SlidingWindow = slidingWindow,
            Eviction = capacity is int tokensLeft ? TokenEviction.SnapKv(tokensLeft, 16) : null,
        };
        using PromptCache cache = new(_model, ModelCache.Mustafar(_model, options));
        bool reused = false, forgot = false;
        for (int i = 0; i < 80; i++)
        {
            int[] prompt = Next(random, [.. cache.Ids]);
            int reusable = cache.Reusable(prompt);
            int[] tokens = [.. cache.Generate(prompt, Greedy(), 5, s_noStop)];
            reused |= cache.ReusedTokens >= PromptCache.LeastTokens;
            forgot |= cache.ReusedTokens < reusable;
            using (Assert.EnterMultipleScope())
            {
                Assert.That(cache.Cache.Positions[0], Is.EqualTo(cache.Ids.Count), $"seed {seed}, prompt {i}");
                Assert.That(cache.Cache.Length == cache.Ids.Count || cache.Cache.Length < capacity + options.GroupSize, $"prompt {i}: length");
                Assert.That(cache.Ids, Is.EqualTo((int[])[.. prompt, .. tokens[..^1]]));
                Assert.That(cache.ReusedTokens, Is.EqualTo(reusable).Or.Zero);
            }
        }

        Assert.That(reused);
        Assert.That(forgot, Is.EqualTo(slidingWindow is not null || capacity is not null));
    }

    // What another chat pruned of the marks that begin both would change the reply.
    [Test]
    public void AFewTokensOfACompressedCacheAreReadAgain()
    {
        MustafarOptions options = new() { LocalWindow = 0, GroupSize = 32 };
        int[] first = RandomModel.Prompt(_model, 200), second = [.. first[..20], .. RandomModel.Prompt(_model, 50, seed: 1)];
        using PromptCache used = new(_model, ModelCache.Mustafar(_model, options)), unused = new(_model, ModelCache.Mustafar(_model, options));
        Assert.That(used.Generate(first, Greedy(), 5, s_noStop).Count(), Is.EqualTo(5));
        Assert.That(used.Generate(second, Greedy(), 40, s_noStop), Is.EqualTo(unused.Generate(second, Greedy(), 40, s_noStop)));
        Assert.That(used.ReusedTokens, Is.Zero);
    }

    [Test]
    public void AForkGoesOnByItself()
    {
        int[] prompt = RandomModel.Prompt(_model, 100), other = [.. prompt[..60], .. RandomModel.Prompt(_model, 30, seed: 1)];
        using PromptCache cache = new(_model, ModelCache.Dense(_model));
        Assert.That(cache.Generate(prompt, Greedy(), 5, s_noStop).Count(), Is.EqualTo(5));
        int[] before = [.. cache.Ids];
        using PromptCache fork = cache.Fork(60);
        Assert.That(fork.Ids, Is.EqualTo(prompt[..60]));
        Assert.That(fork.Generate(other, Greedy(), 5, s_noStop).Count(), Is.EqualTo(5));
        Assert.That(fork.ReusedTokens, Is.EqualTo(60));
        Assert.That(cache.Ids, Is.EqualTo(before));
    }

    [Test]
    public void WhatIsRefusedOrNotReadChangesNothing()
    {
        using PromptCache cache = new(_model, ModelCache.Dense(_model));
        int[] prompt = RandomModel.Prompt(_model, 50);
        Assert.That(cache.Generate(prompt, Greedy(), 5, s_noStop).Count(), Is.EqualTo(5));
        int[] before = [.. cache.Ids];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => cache.Generate([], Greedy(), 5, s_noStop), Throws.ArgumentException);
            Assert.That(() => cache.Generate([VocabSize], Greedy(), 5, s_noStop), Throws.ArgumentException);
            Assert.That(() => cache.Generate(new int[1000], Greedy(), 5, s_noStop), Throws.ArgumentException);
            Assert.That(() => cache.Generate([1], Greedy(), 5, s_noStop, new CancellationToken(true)).Count(), Throws.InstanceOf<OperationCanceledException>());
            _ = cache.Generate([1], Greedy(), 5, s_noStop);
            Assert.That(cache.Ids, Is.EqualTo(before));
            using ModelCache filled = ModelCache.Dense(_model);
            Assert.That(new TokenGenerator(_model, filled).Generate(prompt, Greedy(), 1, s_noStop).Count(), Is.EqualTo(1));
            Assert.That(() => new PromptCache(_model, filled), Throws.ArgumentException.With.Message.Contains("empty"));
            Assert.That(() => new PromptCache(_model, filled, [1]), Throws.ArgumentException.With.Message.Contains("a cache of 1 tokens"));
        }
    }

    private static int[] Next(Random random, int[] ids)
    {
        int kept = random.Next(5) == 0 ? 0 : random.Next(ids.Length + 1);
        int added = random.Next(ids.Length > 350 ? 5 : 60);
        int[] next = random.Next(6) == 0 ? ids : [.. ids[..Math.Min(kept, 400)], .. Enumerable.Range(0, added).Select(_ => random.Next(VocabSize))];
        return next.Length == 0 ? [1] : next;
    }

    // Depends on all tokens of the prompt, those that the cache holds among them.
    private static Sampler Penalising() => new(SamplingParameters.Greedy with { RepetitionPenalty = 1.5 });

    private static Sampler Greedy() => new(SamplingParameters.Greedy);
}
