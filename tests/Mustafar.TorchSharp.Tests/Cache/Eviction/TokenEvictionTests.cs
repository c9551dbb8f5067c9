using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Eviction;

/// <summary>Sequences of which tokens are evicted, against plain ones that drop the tokens which a plain computation of their scores names.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class TokenEvictionTests(string device) : TensorFixture
{
    private const int Capacity = 96;
    private const int Group = 32;
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 64 };

    private static readonly MustafarOptions s_unpruned = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 16, GroupSize = Group };

    private static readonly TokenEviction[] s_methods =
    [
        TokenEviction.StreamingLlm(Capacity), TokenEviction.StreamingLlm(Capacity, 20), TokenEviction.SnapKv(Capacity), TokenEviction.SnapKv(Capacity, 8, 1),
        TokenEviction.SnapKv(Capacity, 16, 5), TokenEviction.HeavyHitters(Capacity), TokenEviction.HeavyHitters(Capacity, 10),
    ];

    [SetUp]
    public void Seed() => manual_seed(5);

    // Prompts and steps of several sizes, then token by token past several evictions.
    [Test]
    public void Sequences_keep_the_tokens_that_plain_scores_name([Range(0, 6)] int method, [Values(0, 4)] int sinks, [Values(10, 130, 300)] int prompt)
    {
        TokenEviction eviction = s_methods[method];
        using EvictionSetup setup = new(device, s_unpruned with { Eviction = eviction, SinkTokens = sinks });
        PlainScores scores = new(eviction, setup.Plain, sinks);
        int total = 0;
        foreach (int count in (int[])[prompt, 3, 1, 1, 70, 9, .. Enumerable.Repeat(1, 80), 140, 1, 1])
        {
            total += count;
            setup.Step(count, $"{eviction}, {total} tokens");
            scores.Add(count);
            Assert.That(setup.Cache.LengthOf(setup.Sequence), Is.EqualTo(setup.Plain.Length), $"{total} tokens");
            Assert.That(setup.Cache.PositionOf(setup.Sequence), Is.EqualTo(total));
        }

        Assert.That(setup.Plain.Length, Is.LessThan(Capacity + Group), "something was evicted");
    }

    [Test]
    public void Each_sequence_and_each_fork_has_its_own_scores([Values(2, 5)] int method)
    {
        TokenEviction eviction = s_methods[method];
        using EvictionSetup setup = new(device, s_unpruned with { Eviction = eviction });
        PlainScores scores = new(eviction, setup.Plain, 0);
        setup.Step(100, "the prompt");
        scores.Add(100);
        int fork = setup.Cache.Fork(setup.Sequence), other = setup.Cache.AddSequence();
        PlainTokens plainFork = setup.Plain.Copy();
        PlainScores forkScores = scores.Copy(plainFork);
        for (int i = 0; i < 40; i++)
        {
            setup.Step(1, $"step {i}");
            scores.Add(1);
            (Tensor[] actual, Tensor[] expected) = setup.Step(fork, plainFork, 1);
            forkScores.Add(1);
            Oracle.Compare.Close(actual[1], expected[1], 2e-5, 2e-5, $"step {i} of the fork");
            setup.Step(other, new PlainTokens(EvictionSetup.Layers, EvictionSetup.KvHeads), 1);
        }

        Assert.That(setup.Cache.LengthOf(fork), Is.EqualTo(plainFork.Length).And.LessThan(140));
        setup.Cache.RemoveSequence(setup.Sequence);
        setup.Cache.RemoveSequence(fork);
        setup.Cache.RemoveSequence(other);
        Assert.That(setup.Cache.Usage.UsedBytes, Is.Zero, "nothing is left of what was known of them");
    }

    [Test]
    public void A_step_that_is_given_up_counts_nothing([Values(2, 5)] int method, [Values(1, 20, 100)] int count)
    {
        TokenEviction eviction = s_methods[method];
        using EvictionSetup setup = new(device, s_unpruned with { Eviction = eviction });
        PlainScores scores = new(eviction, setup.Plain, 0);
        setup.Step(110, "the prompt");
        scores.Add(110);
        using (CacheStep step = setup.Cache.BeginStep([setup.Sequence], count))
        {
            Tensor query = randn([1, EvictionSetup.Heads, count, EvictionSetup.HeadDim], device: torch.device(device));
            step.Attend(0, query, query.narrow(1, 0, 2), query.narrow(1, 2, 2));
        }

        for (int i = 0; i < 30; i++)
        {
            setup.Step(1, $"step {i}");
            scores.Add(1);
        }

        Assert.That(setup.Cache.LengthOf(setup.Sequence), Is.EqualTo(setup.Plain.Length).And.LessThan(140));
    }

    [Test]
    public void What_was_dropped_is_not_asked_for_again([Values(2, 5)] int method)
    {
        using EvictionSetup setup = new(device, s_unpruned with { Eviction = s_methods[method] });
        setup.Step(200, "the prompt", compares: false);
        setup.Cache.Truncate(setup.Sequence, Capacity - 3);
        setup.Step(50, "more tokens", compares: false);
        Assert.That(setup.Cache.LengthOf(setup.Sequence), Is.EqualTo(Capacity));
        setup.Cache.Truncate(setup.Sequence, 0);
        setup.Step(20, "another text", compares: false);
        Assert.That((setup.Cache.LengthOf(setup.Sequence), setup.Cache.PositionOf(setup.Sequence)), Is.EqualTo((20, 20)));
    }

    [Test]
    public void Eviction_goes_with_pruning_and_few_bits([Range(0, 6)] int method, [Values] bool channelScales)
    {
        MustafarOptions options = s_unpruned with
        {
            KeySparsity = 0.5, ValueSparsity = 0.5, KeyBits = 4, ValueBits = 8, KeyChannelScales = channelScales, Eviction = s_methods[method],
        };
        using EvictionSetup setup = new(device, options, ScalarType.BFloat16);
        for (int i = 0; i < 60; i++)
        {
            setup.Step(i == 0 ? 150 : 1, "", compares: false);
        }

        Assert.That(setup.Cache.LengthOf(setup.Sequence), Is.InRange(Capacity, Capacity + Group - 1));
    }

    [Test]
    public void What_does_not_go_together_is_refused()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => TokenEviction.SnapKv(32), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => TokenEviction.SnapKv(64, 32, 4), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => TokenEviction.StreamingLlm(10, 0), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => TokenEviction.StreamingLlm(10, 10), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => TokenEviction.HeavyHitters(1), Throws.TypeOf<ArgumentOutOfRangeException>());
            Refused("sliding window of 50", new MustafarOptions { Eviction = s_methods[0], SlidingWindow = 50 });
            Refused("200 attention sinks", new MustafarOptions { Eviction = s_methods[2], SinkTokens = 200 });
            Refused("layer 1", new MustafarOptions { Eviction = s_methods[2] }, new MustafarOptions());
            Assert.That(
                () => new MustafarCache(1, s_shape, ScalarType.Float32, torch.device(device), new MustafarOptions { Eviction = s_methods[0] }),
                Throws.TypeOf<NotSupportedException>());
        }

        void Refused(string word, params MustafarOptions[] layers) => Assert.That(
            () => new MustafarModelCache(layers, s_shape, ScalarType.Float32, torch.device(device)), Throws.ArgumentException.With.Message.Contains(word));
    }

    /// <summary>Which tokens stay, by loops over all weights of all queries.</summary>
    private sealed class PlainScores(TokenEviction eviction, PlainTokens plain, int sinks)
    {
        private readonly List<double[]>[,] _weights = new List<double[]>[EvictionSetup.Layers, EvictionSetup.KvHeads]; // of each query the mean over heads

        /// <summary>Adds the step that the plain tokens made last, and drops tokens if it is time to.</summary>
        public void Add(int count)
        {
            int length = plain.Length;
            for (int layer = 0; layer < EvictionSetup.Layers; layer++)
            {
                for (int head = 0; head < EvictionSetup.KvHeads; head++)
                {
                    List<double[]> rows = _weights[layer, head] ??= [];
                    Tensor mean = plain.Weights[layer][head].mean([0]);
                    rows.AddRange(Enumerable.Range(0, count).Select(i => mean[i].contiguous().data<double>().ToArray()));
                }
            }

            if (length >= Capacity + Group)
            {
                Drop(length);
            }
        }

        public PlainScores Copy(PlainTokens other)
        {
            PlainScores copy = new(eviction, other, sinks);
            for (int i = 0; i < _weights.Length; i++)
            {
                (int layer, int head) = (i / EvictionSetup.KvHeads, i % EvictionSetup.KvHeads);
                copy._weights[layer, head] = [.. _weights[layer, head]];
            }

            return copy;
        }

        private void Drop(int length)
        {
            List<long> all = [];
            for (int layer = 0; layer < EvictionSetup.Layers; layer++)
            {
                for (int head = 0; head < EvictionSetup.KvHeads; head++)
                {
                    int[] kept = Kept(layer, head, length);
                    all.AddRange(kept.Select(i => (long)i));
                    _weights[layer, head] = [.. _weights[layer, head].Select(row => kept.Select(i => i < row.Length ? row[i] : 0).ToArray())];
                }
            }

            plain.Keep(tensor(all.ToArray()).reshape(EvictionSetup.Layers, EvictionSetup.KvHeads, -1));
        }

        private int[] Kept(int layer, int head, int length)
        {
            int earlier = length - eviction.RecentTokens;
            double[] scores = new double[earlier];
            if (eviction.Method == TokenEvictionMethod.FirstAndRecent)
            {
                scores = [.. Enumerable.Range(0, earlier).Select(i => -(double)i)];
            }
            else
            {
                List<double[]> rows = _weights[layer, head];
                int first = eviction.Method == TokenEvictionMethod.RecentAttention ? Math.Max(0, rows.Count - eviction.RecentTokens) : 0;
                double[] sums = [.. Enumerable.Range(0, earlier).Select(i => rows.Skip(first).Sum(row => i < row.Length ? row[i] : 0))];
                int reach = eviction.KernelSize / 2;
                scores = [.. sums.Select((_, i) => sums[Math.Max(0, i - reach)..Math.Min(earlier, i + reach + 1)].Max())];
            }

            IEnumerable<int> chosen = Enumerable.Range(0, earlier).OrderBy(i => i < sinks ? 0 : 1).ThenByDescending(i => scores[i])
                .Take(eviction.Capacity - eviction.RecentTokens).Order();
            return [.. chosen, .. Enumerable.Range(earlier, eviction.RecentTokens)];
        }
    }
}
