using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>Steps that may be graphs, against steps that run as they are.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class DecodeStepsTests(string device)
{
    private static readonly MustafarOptions s_options = new() { LocalWindow = 16, GroupSize = 32 };

    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void MakeModel() => _model = New(ScalarType.BFloat16);

    [OneTimeTearDown]
    public void DisposeModel() => _model.Dispose();

    /// <summary>Sequences join, leave, fork and are shortened between steps of any of them, in any order.</summary>
    /// <remarks>
    /// On CUDA the products of a batch are not always the same bits twice (cuBLAS, cuDNN), so that logits are compared, and both go on with
    /// one's tokens.
    /// </remarks>
    [Test]
    public void Sequences_that_come_and_go_get_what_they_get_without_graphs([Values] bool compressed, [Values] bool limited, [Values(0, 4)] int sinks)
    {
        const int most = 5;
        int steps = device == "cpu" ? 120 : 500;
        Random random = new(compressed ? 1 : 2);
        using IDisposable mode = inference_mode();
        using ModelKeyValueCache cache = NewCache(compressed, limited, sinks), plain = NewCache(compressed, limited, sinks);
        using Runner graphs = new(_model, cache, capture: true), eager = new(_model, plain, capture: false);
        List<(int InCache, int InPlain)> sequences = [];
        for (int i = 0; i < steps; i++)
        {
            using var scope = NewDisposeScope();
            Change(random, cache, plain, sequences, most);
            (int InCache, int InPlain)[] chosen = random.Next(4) == 0
                ? [.. sequences.OrderBy(_ => random.Next()).Take(random.Next(1, sequences.Count + 1))]
                : [.. sequences];
            int[] counts = random.Next(5) == 0 ? [.. chosen.Select(_ => random.Next(2))] : [];
            int[] tokens = [.. chosen.Select(_ => random.Next(_model.Config.VocabSize))];
            Tensor actual = graphs.Step([.. chosen.Select(sequence => sequence.InCache)], counts, tokens);
            Tensor expected = eager.Step([.. chosen.Select(sequence => sequence.InPlain)], counts, tokens);
            for (int row = 0; row < chosen.Length; row++)
            {
                if (counts.Length == 0 || counts[row] == 1)
                {
                    double difference = (actual[row] - expected[row]).norm().item<float>() / expected[row].norm().item<float>();
                    Assert.That(difference, Is.LessThan(device == "cpu" ? 1e-6 : 0.03), $"step {i}, row {row} of {chosen.Length}");
                }

                Assert.That(cache.LengthOf(chosen[row].InCache), Is.EqualTo(plain.LengthOf(chosen[row].InPlain)));
            }
        }

        if (device == "cpu")
        {
            Assert.That(graphs.Launches, Is.Zero);
        }
        else if (limited && sinks == 0)
        {
            Assert.That(graphs.WhyEager, Is.Null);
            Assert.That(graphs.Launches, Is.GreaterThan(steps / 5));
        }
    }

    /// <summary>A generation that feeds itself: each step reads the tokens that the one before chose.</summary>
    [Test]
    public void Tokens_that_are_chosen_are_the_next_input([Values] bool compressed, [Values(0, 1)] double temperature)
    {
        using IDisposable mode = inference_mode();
        int[][] generated = [.. new[] { true, false }.Select(capture =>
        {
            using ModelKeyValueCache cache = NewCache(compressed, limited: true, sinks: 0);
            int[] sequences = [cache.AddSequence(), cache.AddSequence(), cache.AddSequence()];
            using SamplingState sampling = new(3, _model.Config.VocabSize, _model.Device);
            for (int row = 0; row < 3; row++)
            {
                sampling.Restart(row, new SamplingParameters { Temperature = temperature, Seed = (ulong)row });
            }

            using DecodeSteps steps = new(_model, cache, 3, sampling, logProbabilities: true, capture: capture);
            List<int> all = [];
            for (int i = 0; i < 60; i++)
            {
                steps.Run(sequences);
                using Tensor tokens = steps.Tokens.cpu(), logs = steps.LogProbabilities!.cpu();
                all.AddRange(tokens.data<long>().Select(token => (int)token));
                Assert.That(logs.data<float>().ToArray(), Has.All.LessThanOrEqualTo(0));
            }

            return all.ToArray();
        })];
        Assert.That(generated[0], Has.All.InRange(0, _model.Config.VocabSize - 1));
        if (device == "cpu")
        {
            Assert.That(generated[0], Is.EqualTo(generated[1]));
        }
        else
        {
            // Products differ by bits between runs: the first tokens agree at least.
            Assert.That(generated[0].Take(3), Is.EqualTo(generated[1].Take(3)));
        }
    }

    [Test]
    public void Unused_ids_are_never_chosen()
    {
        using LlamaForCausalLM model = New(ScalarType.Float32, unused: [.. Enumerable.Range(0, 300).Where(id => id != 77)]);
        using ModelKeyValueCache cache = NewCache(model, compressed: true, limited: false, sinks: 0);
        using SamplingState sampling = new(1, 300, model.Device);
        using DecodeSteps steps = new(model, cache, 1, sampling);
        steps.Run([cache.AddSequence()]);
        Assert.That(steps.Tokens.cpu().item<long>(), Is.EqualTo(77));
    }

    private LlamaForCausalLM New(ScalarType dtype, int[]? unused = null)
    {
        LlamaConfig config = new()
        {
            VocabSize = 300,
            HiddenSize = 96,
            IntermediateSize = 160,
            NumLayers = 3,
            NumHeads = 4,
            NumKvHeads = 2,
            HeadDim = 64,
            RmsNormEps = 1e-5,
            Rotary = new RotaryOptions { HeadDim = 64, Theta = 10000 },
            MaxPositions = 4096,
            QueryKeyNorm = true,
            QkvBias = true,
            MlpBias = true,
            UnusedTokenIds = unused ?? [],
        };
        return RandomModel.New(config, seed: 3, deviation: 0.1, dtype, new Device(device));
    }

    private ModelKeyValueCache NewCache(bool compressed, bool limited, int sinks) => NewCache(_model, compressed, limited, sinks);

    private static ModelKeyValueCache NewCache(LlamaForCausalLM model, bool compressed, bool limited, int sinks)
    {
        LlamaConfig config = model.Config;
        CacheLimits limits = limited ? new CacheLimits { MaxSequences = 8, MaxLength = 700 } : new CacheLimits();
        return compressed
            ? new MustafarModelCache(
                config.NumLayers, config.KeyValueShape, model.DType, model.Device, s_options with { SinkTokens = sinks },
                limited ? limits with { BudgetTokens = 8 * 704 } : limits)
            : new DenseModelCache(config.NumLayers, config.KeyValueShape, model.DType, model.Device, limits: limits);
    }

    private static void Change(
        Random random, ModelKeyValueCache cache, ModelKeyValueCache plain, List<(int InCache, int InPlain)> sequences, int most)
    {
        if (sequences.Count == 0 || (sequences.Count < most && random.Next(30) == 0))
        {
            sequences.Add((cache.AddSequence(), plain.AddSequence()));
        }

        int one = random.Next(sequences.Count);
        switch (random.Next(60))
        {
            case 0 when sequences.Count > 1:
                cache.RemoveSequence(sequences[one].InCache);
                plain.RemoveSequence(sequences[one].InPlain);
                sequences.RemoveAt(one);
                break;
            case 1 when sequences.Count < most:
                sequences.Add((cache.Fork(sequences[one].InCache), plain.Fork(sequences[one].InPlain)));
                break;
            case 2:
                int length = random.Next(cache.LengthOf(sequences[one].InCache) + 1);
                cache.Truncate(sequences[one].InCache, length);
                plain.Truncate(sequences[one].InPlain, length);
                break;
        }
    }

    // Steps of any number of sequences.
    private sealed class Runner(LlamaForCausalLM model, ModelKeyValueCache cache, bool capture) : IDisposable
    {
        private readonly Dictionary<int, DecodeSteps> _bySize = [];

        internal long Launches => _bySize.Values.Sum(steps => steps.Graph.Launches);

        internal string? WhyEager => _bySize.Values.Select(steps => steps.Graph.WhyEager).FirstOrDefault(why => why is not null);

        internal Tensor Step(int[] sequences, int[] counts, int[] tokens)
        {
            if (!_bySize.TryGetValue(sequences.Length, out DecodeSteps? steps))
            {
                _bySize.Add(sequences.Length, steps = new DecodeSteps(model, cache, sequences.Length, capture: capture));
            }

            steps.Tokens.copy_(tensor(tokens.Select(token => (long)token).ToArray()));
            steps.Run(sequences, counts);
            return steps.Logits.to(ScalarType.Float32).cpu();
        }

        public void Dispose()
        {
            foreach (DecodeSteps steps in _bySize.Values)
            {
                steps.Dispose();
            }
        }
    }
}
