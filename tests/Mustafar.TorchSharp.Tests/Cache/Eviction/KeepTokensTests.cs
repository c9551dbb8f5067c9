using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Eviction;

/// <summary>Attention over some kept tokens, against that over plain ones of which the others were dropped.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class KeepTokensTests(string device) : TensorFixture
{
    private static readonly MustafarOptions s_unpruned = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 16, GroupSize = 32 };

    [SetUp]
    public void Seed() => manual_seed(3);

    // Of lengths around groups and windows, to lengths around them.
    [Test]
    public void Attention_is_that_of_the_kept_tokens(
        [Values(1, 17, 48, 150, 230)] int length, [Values(0.02, 0.3, 0.7, 1)] double share, [Values(0, 3)] int sinks)
    {
        using EvictionSetup setup = new(device, s_unpruned with { SinkTokens = sinks });
        Random random = new(length);
        setup.Step(length, "the prompt");
        int count = Math.Max(Math.Min(length, Math.Max(1, sinks)), (int)(share * length));
        Tensor tokens = EvictionSetup.RandomTokens(random, length, count, Math.Min(sinks, length));
        setup.Cache.KeepTokens(setup.Sequence, tokens);
        setup.Plain.Keep(tokens);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(setup.Cache.LengthOf(setup.Sequence), Is.EqualTo(count));
            Assert.That(setup.Cache.PositionOf(setup.Sequence), Is.EqualTo(length));
        }

        for (int i = 0; i < 5; i++)
        {
            setup.Step(1, $"step {i}");
        }

        setup.Step(40, "many tokens");
        setup.Step(4, "a few tokens");
        for (int i = 0; i < 40; i++)
        {
            setup.Step(1, $"late step {i}");
        }

        // Once more, over tokens from before and after.
        length = setup.Cache.LengthOf(setup.Sequence);
        tokens = EvictionSetup.RandomTokens(random, length, length / 2, Math.Min(sinks, length));
        setup.Cache.KeepTokens(setup.Sequence, tokens);
        setup.Plain.Keep(tokens);
        setup.Step(1, "after keeping twice");
    }

    // What was pruned stays pruned, and what comes out of the window is pruned.
    [Test]
    public void Kept_tokens_are_pruned_as_their_number_asks([Values] bool sixteenBits, [Values(60, 100, 200)] int count)
    {
        const int length = 220, keep = 24;
        MustafarOptions options = s_unpruned with { KeySparsity = 0.625, ValueSparsity = 0.625 };
        using EvictionSetup setup = new(device, options, sixteenBits ? ScalarType.BFloat16 : ScalarType.Float32);
        setup.Step(length, "the prompt");
        setup.Plain.Change(setup.Cache.CompressedLengthOf(setup.Sequence), Prune);
        Tensor tokens = EvictionSetup.RandomTokens(new Random(count), length, count);
        setup.Cache.KeepTokens(setup.Sequence, tokens);
        setup.Plain.Keep(tokens);
        int compressed = setup.Cache.CompressedLengthOf(setup.Sequence);
        Assert.That(compressed, Is.EqualTo((count - options.LocalWindow) / 32 * 32));
        setup.Plain.Change(compressed, Prune);
        setup.Step(1, "the next token");

        static Tensor Prune(Tensor rows, bool keys) => ReferencePruning.Prune(rows, keep);
    }

    // Integers are made once more from those that are stored: no worse than when they are made for the first time.
    [Test]
    public void Integers_lose_little_by_being_made_again([Values(8, 4)] int bits, [Values] bool channelScales)
    {
        const int length = 220, count = 120;
        MustafarOptions options = s_unpruned with { KeyBits = bits, ValueBits = bits, KeyChannelScales = channelScales };
        using EvictionSetup setup = new(device, options);
        using EvictionSetup fresh = new(device, options);
        setup.Step(length, "the prompt");
        Tensor tokens = EvictionSetup.RandomTokens(new Random(bits), length, count);
        setup.Cache.KeepTokens(setup.Sequence, tokens);
        setup.Plain.Keep(tokens);
        fresh.Step(count, "as many tokens");
        Assert.That(ErrorOf(setup), Is.LessThan(1.5 * ErrorOf(fresh)));

        static double ErrorOf(EvictionSetup setup)
        {
            (Tensor[] actual, Tensor[] expected) = setup.Step(setup.Sequence, setup.Plain, 1);
            return Compare.RelativeError(actual[0], expected[0]);
        }
    }

    [Test]
    public void Pages_are_free_again_and_forks_keep_theirs()
    {
        using EvictionSetup setup = new(device, s_unpruned);
        setup.Step(320, "the prompt");
        int fork = setup.Cache.Fork(setup.Sequence);
        PlainTokens plainFork = setup.Plain.Copy();
        long before = setup.Cache.Usage.UsedBytes;
        Tensor tokens = EvictionSetup.RandomTokens(new Random(1), 320, 80);
        setup.Cache.KeepTokens(setup.Sequence, tokens);
        setup.Plain.Keep(tokens);
        long shared = setup.Cache.Usage.UsedBytes;
        setup.Step(1, "the sequence");
        (Tensor[] actual, Tensor[] expected) = setup.Step(fork, plainFork, 1);
        Compare.Close(actual[1], expected[1], 2e-5, 2e-5, "the fork");

        setup.Cache.RemoveSequence(fork);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(shared, Is.GreaterThan(before), "the fork has the pages");
            Assert.That(setup.Cache.CompressedLengthOf(setup.Sequence), Is.EqualTo(64));

            // Pages of 9 groups before, of 2 after.
            long page = 2L * EvictionSetup.Layers * EvictionSetup.KvHeads * 32 * EvictionSetup.HeadDim * sizeof(float);
            Assert.That(before - setup.Cache.Usage.UsedBytes, Is.GreaterThanOrEqualTo(7 * page));
        }
    }

    [Test]
    public void Only_tokens_after_the_last_gap_are_dropped()
    {
        using EvictionSetup setup = new(device, s_unpruned with { SinkTokens = 2 });
        setup.Step(100, "the prompt");
        long[] own = [0, 1, 5, 40, .. Enumerable.Range(70, 30).Select(i => (long)i)];
        Tensor tokens = tensor(own).expand(EvictionSetup.Layers, EvictionSetup.KvHeads, own.Length);
        setup.Cache.KeepTokens(setup.Sequence, tokens);
        setup.Plain.Keep(tokens);
        setup.Step(3, "more tokens");
        Assert.That(() => setup.Cache.Truncate(setup.Sequence, 3), Throws.InvalidOperationException.With.Message.Contains("first 4"));
        Assert.That(setup.Cache.LengthOf(setup.Sequence), Is.EqualTo(37));
        setup.Cache.Truncate(setup.Sequence, 10);
        setup.Plain.Truncate(10);
        Assert.That(setup.Cache.PositionOf(setup.Sequence), Is.EqualTo(76));
        setup.Step(1, "after being shortened");
        setup.Cache.Truncate(setup.Sequence, 2);
        Assert.That(setup.Cache.PositionOf(setup.Sequence), Is.EqualTo(2), "the sinks alone");
        setup.Cache.Truncate(setup.Sequence, 0);
        Assert.That(setup.Cache.PositionOf(setup.Sequence), Is.Zero);
    }

    [Test]
    public void A_step_that_is_given_up_and_a_refusal_change_nothing()
    {
        using EvictionSetup setup = new(device, s_unpruned, limits: new CacheLimits { MaxSequences = 1, BudgetTokens = 256 });
        setup.Step(200, "the prompt");
        Tensor tokens = EvictionSetup.RandomTokens(new Random(2), 200, 170);
        Assert.That(() => setup.Cache.KeepTokens(setup.Sequence, tokens), Throws.InstanceOf<CacheBudgetException>());
        Assert.That(setup.Cache.LengthOf(setup.Sequence), Is.EqualTo(200));
        tokens = EvictionSetup.RandomTokens(new Random(2), 200, 90);
        setup.Cache.KeepTokens(setup.Sequence, tokens);
        setup.Plain.Keep(tokens);
        using (setup.Cache.BeginStep([setup.Sequence], 60))
        {
            Assert.That(() => setup.Cache.KeepTokens(setup.Sequence, tokens), Throws.InvalidOperationException);
        }

        Assert.That((setup.Cache.LengthOf(setup.Sequence), setup.Cache.PositionOf(setup.Sequence)), Is.EqualTo((90, 200)));
        setup.Step(1, "the next token");
    }

    [Test]
    public void What_can_not_be_kept_is_refused()
    {
        using EvictionSetup setup = new(device, s_unpruned with { SinkTokens = 2 });
        setup.Step(10, "the prompt");
        using (Assert.EnterMultipleScope())
        {
            Refused([0, 1, 10], "tokens 0 to 9");
            Refused([0, 1, -1], "tokens 0 to 9");
            Refused([0, 1, 5, 5], "ascending");
            Refused([0, 1, 5, 4], "ascending");
            Refused([0, 3, 4], "2 attention sinks");
            Refused([0], "2 attention sinks");
            Assert.That(
                () => setup.Cache.KeepTokens(setup.Sequence, zeros([2, 2, 0], dtype: ScalarType.Int64)),
                Throws.ArgumentException.With.Message.Contains("[2, 2, count > 0]"));
            Assert.That(
                () => setup.Cache.KeepTokens(setup.Sequence, zeros([2, 2, 1], dtype: ScalarType.Int32)), Throws.ArgumentException.With.Message.Contains("Int64"));
            Assert.That(() => setup.Cache.KeepTokens(99, zeros([2, 2, 1], dtype: ScalarType.Int64)), Throws.InstanceOf<SequenceNotFoundException>());
            Assert.That(() => setup.Cache.KeepTokens(setup.Sequence, null!), Throws.ArgumentNullException);
            Assert.That(setup.Cache.LengthOf(setup.Sequence), Is.EqualTo(10));
        }

        setup.Cache.KeepTokens(setup.Sequence, tensor((long[])[0, 1, 7]).expand(2, 2, 3));
        Assert.That(
            () => MustafarCacheFile.Save("never.safetensors", setup.Cache, [setup.Sequence], "f"),
            Throws.TypeOf<NotSupportedException>().With.Message.Contains("only 3 of its 10 tokens are left"));
        using MustafarModelCache sliding = new(1, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, torch.device(device), new MustafarOptions { SlidingWindow = 50 });
        int sequence = sliding.AddSequence();
        Assert.That(() => sliding.KeepTokens(sequence, zeros([1, 2, 1], dtype: ScalarType.Int64)), Throws.TypeOf<NotSupportedException>());

        void Refused(long[] tokens, string word) => Assert.That(
            () => setup.Cache.KeepTokens(setup.Sequence, tensor(tokens).expand(2, 2, tokens.Length)), Throws.ArgumentException.With.Message.Contains(word));
    }
}
