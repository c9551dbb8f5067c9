using Mustafar.Tests.Oracle;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Sequences;

/// <summary>What becomes of steps that can't be graphs, and of wrong ones.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class DecodeGraphTests(string device) : TensorFixture
{
    private const int Layers = 2;

    private MustafarModelCache _cache = null!;
    private Tensor _heads = null!;

    [SetUp]
    public void MakeCache()
    {
        _cache = new MustafarModelCache(
            Layers, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.BFloat16, new torch.Device(device), new MustafarOptions { LocalWindow = 16, GroupSize = 32 },
            new CacheLimits { MaxSequences = 4, MaxLength = 300, BudgetTokens = 4 * 320 });
        _heads = randn([2, 2, 1, 64], dtype: ScalarType.BFloat16, device: device);
    }

    [TearDown]
    public void DisposeCache()
    {
        _cache.Dispose();
        _heads.Dispose();
    }

    [Test]
    public void A_function_that_leaves_a_layer_out_is_refused_and_the_sequences_go_on()
    {
        int[] sequences = [_cache.AddSequence(), _cache.AddSequence()];
        int layers = 1;
        using DecodeGraph graph = new(_cache, step => Attend(step, layers));
        Assert.That(() => graph.Run(sequences), Throws.InvalidOperationException.With.Message.Contains("layer 1 has not"));
        Assert.That(_cache.LengthOf(sequences[0]), Is.Zero);
        layers = Layers;
        for (int i = 1; i <= 4; i++)
        {
            graph.Run(sequences);
            Assert.That(_cache.LengthOf(sequences[1]), Is.EqualTo(i));
        }
    }

    [Test]
    public void A_function_that_fails_leaves_the_sequences_as_they_were()
    {
        int[] sequences = [_cache.AddSequence(), _cache.AddSequence()];
        bool fails = false;
        using DecodeGraph graph = new(_cache, step =>
        {
            Attend(step, 1);
            if (fails)
            {
                throw new TimeoutException();
            }

            step.Attend(1, _heads, _heads, _heads);
        });
        graph.Run(sequences);
        fails = true;
        Assert.That(() => graph.Run(sequences), Throws.TypeOf<TimeoutException>());
        fails = false;
        graph.Run(sequences);
        Assert.That(_cache.LengthOf(sequences[0]), Is.EqualTo(2));
    }

    [Test]
    public void Reading_back_is_no_work_for_a_graph_but_works()
    {
        int[] sequences = [_cache.AddSequence(), _cache.AddSequence()];
        List<float> read = [];
        using DecodeGraph graph = new(_cache, step =>
        {
            Attend(step, Layers);
            read.Add(_heads.to(ScalarType.Float32).sum().item<float>());
        });
        for (int i = 0; i < 4; i++)
        {
            graph.Run(sequences);
        }

        Assert.That(read, Has.Count.EqualTo(4));
        Assert.That(graph.WhyEager, Is.Not.Null);
        Assert.That(_cache.LengthOf(sequences[0]), Is.EqualTo(4));
    }

    [Test]
    public void The_position_is_where_it_was_whatever_it_is()
    {
        int[] sequences = [_cache.AddSequence(), _cache.AddSequence(), _cache.AddSequence()];
        Tensor positions = zeros([2, 1], dtype: ScalarType.Int32, device: device);
        using DecodeGraph graph = new(_cache, step =>
        {
            Attend(step, Layers);
            positions.copy_(step.DevicePositions);
        });
        int[][] rows = [[0, 1], [0, 1], [0, 2], [2, 1], [1, 0]];
        int[] lengths = new int[3];
        foreach (int[] row in rows)
        {
            graph.Run([.. row.Select(index => sequences[index])]);
            Assert.That(positions.cpu().data<int>().ToArray(), Is.EqualTo(row.Select(index => lengths[index])));
            Array.ForEach(row, index => lengths[index]++);
        }

        if (device != "cpu")
        {
            Assert.That((graph.Captures, graph.Launches), Is.EqualTo((1, 4)));
        }
    }

    /// <summary>A captured step serves every later one: lengths, slots, counts and pages are read when it runs.</summary>
    [TestCase(ScalarType.Float16, 128, false)]
    [TestCase(ScalarType.BFloat16, 64, true)]
    public void Steps_of_any_sequences_are_what_their_tokens_say(ScalarType dtype, int headDim, bool balanced)
    {
        const int Slots = 5, Rows = 3, Steps = 330;
        MustafarOptions options = new() { LocalWindow = 32, GroupSize = 64, BalancedKeys = balanced, BalancedValues = balanced };
        CacheLimits limits = new() { MaxSequences = Slots, MaxLength = 400, BudgetTokens = Slots * 448 };
        KeyValueShape shape = new() { NumKvHeads = 2, HeadDim = headDim };
        using MustafarModelCache cache = new(1, shape, dtype, new torch.Device(device), options, limits);
        ReferenceCache reference = new(Slots, options, headDim);
        manual_seed(1);
        Random random = new(1);
        int[] sequences = [.. Enumerable.Range(0, Slots).Select(_ => cache.AddSequence())], slots = [.. Enumerable.Range(0, Slots)];
        Tensor query = Random(Rows, 4), keys = Random(Rows, 2), values = Random(Rows, 2), output = empty_like(query);
        using DecodeGraph graph = new(cache, step => output.copy_(step.Attend(0, query, keys, values, 0.1)));
        for (int i = 0; i < Steps; i++)
        {
            random.Shuffle(slots);
            int[] chosen = slots[..Rows], counts = [.. chosen.Select(_ => i % 3 == 0 ? random.Next(2) : 1)], all = new int[Slots];
            (Tensor allQueries, Tensor allKeys, Tensor allValues) = (Random(Slots, 4), Random(Slots, 2), Random(Slots, 2));
            for (int row = 0; row < Rows; row++)
            {
                all[chosen[row]] = counts[row];
                foreach ((Tensor target, Tensor source) in ((Tensor, Tensor)[])[(query, allQueries), (keys, allKeys), (values, allValues)])
                {
                    // A row that gets no token may hold anything.
                    target[row] = counts[row] == 1 ? source[chosen[row]] : full_like(target[row], double.NaN);
                }
            }

            reference.Append(allKeys, allValues, all);
            graph.Run([.. chosen.Select(slot => sequences[slot])], counts);
            Assert.That(sequences.Select(cache.LengthOf), Is.EqualTo(reference.Lengths), $"step {i}");
            Assert.That(sequences.Select(cache.CompressedLengthOf), Is.EqualTo(reference.Compressed), $"step {i}");
            if (i % 16 == 0)
            {
                Tensor expected = reference.Attend(allQueries, 0.1);
                double tolerance = Compare.AttentionTolerance(dtype);
                foreach (int row in Enumerable.Range(0, Rows).Where(row => counts[row] == 1))
                {
                    Compare.Close(output[row], expected[chosen[row]], tolerance, tolerance, $"step {i}, row {row}");
                }
            }
        }

        if (device != "cpu")
        {
            Assert.That(graph.WhyEager, Is.Null);
            Assert.That(graph.Launches, Is.GreaterThan(Steps / 2));
        }

        Tensor Random(int rows, int heads) => randn(rows, heads, 1, headDim).to(dtype).to(device);
    }

    /// <summary>On CUDA an operation starts before the one ahead of it has ended, in a graph too.</summary>
    [Test]
    public void Operations_that_follow_each_other_give_the_same_in_a_graph()
    {
        const int Rows = 4, Hidden = 1024, Width = 2816, VocabSize = 40000;
        Tensor first = Random(Rows, Hidden), firstResidual = Random(Rows, Hidden), norm = ones_like(first[0]);
        Tensor gateUpWeight = 0.03 * Random(2 * Width, Hidden), downWeight = 0.03 * Random(Hidden, Width);
        Tensor headWeight = 0.03 * Random(VocabSize, Hidden);
        Tensor x = first.clone(), residual = firstResidual.clone();
        Tensor gateUp = Random(Rows, 2 * Width), gated = Random(Rows, Width), logits = Random(Rows, VocabSize);
        Tensor tokens = empty(Rows, dtype: ScalarType.Int64, device: device);
        using SamplingState sampling = new(Rows, VocabSize, new torch.Device(device));
        SamplingParameters parameters = new() { Temperature = 0.8, TopK = 40, TopP = 0.95, RepetitionPenalty = 1.1, Seed = 9 };
        (List<long> eagerTokens, Tensor eagerResidual) = Run(capture: false);
        (List<long> graphTokens, Tensor graphResidual) = Run(capture: true);
        Assert.That(graphTokens, Is.EqualTo(eagerTokens));
        Compare.Same(graphResidual, eagerResidual.cpu(), "residual");

        (List<long> Tokens, Tensor Residual) Run(bool capture)
        {
            x.copy_(first);
            residual.copy_(firstResidual);
            for (int row = 0; row < Rows; row++)
            {
                sampling.Restart(row, parameters);
            }

            int[] sequences = [_cache.AddSequence(), _cache.AddSequence()];
            using DecodeGraph graph = new(_cache, Step, capture);
            List<long> drawn = [];
            for (int i = 0; i < 20; i++)
            {
                graph.Run(sequences);
                drawn.AddRange(tokens.cpu().data<long>());
            }

            return (drawn, residual.clone());
        }

        void Step(CacheStep step)
        {
            MustafarOps.RmsNorm(x, norm, 1e-5, residual, output: x);
            MustafarOps.Linear(x, gateUpWeight, output: gateUp);
            MustafarOps.SiluMul(gateUp, gated);
            MustafarOps.Linear(gated, downWeight, new LinearFusion { Residual = residual }, residual);
            MustafarOps.Linear(residual, headWeight, new LinearFusion { Norm = norm, Eps = 1e-5 }, logits);
            MustafarOps.Sample(logits, sampling, tokens: tokens);
            Attend(step, Layers);
        }

        Tensor Random(int rows, int width) => randn(rows, width).to(ScalarType.BFloat16).to(device);
    }

    [Test]
    public void Captured_steps_of_weights_that_have_moved_are_refused_and_the_sequences_go_on([Values] bool converted)
    {
        int[] sequences = [_cache.AddSequence(), _cache.AddSequence()];
        using IDisposable noGrad = no_grad();
        using Linear model = nn.Linear(64, 64, hasBias: false, device: new torch.Device(device), dtype: ScalarType.BFloat16);
        Tensor result = zeros([2, 64], dtype: ScalarType.Float32, device: device);
        using DecodeGraph graph = new(
            _cache,
            step =>
            {
                Attend(step, Layers);
                Tensor weight = model.weight!;
                result.copy_(matmul(_heads.narrow(1, 0, 1).reshape(2, 64).to(weight.dtype), weight.t()));
            },
            model: model);
        for (int i = 0; i < 4; i++)
        {
            graph.Run(sequences);
        }

        if (converted)
        {
            model.to(ScalarType.Float32);
        }
        else
        {
            model.weight = new Parameter(randn_like(model.weight!));
        }

        if (device != "cpu")
        {
            Assert.That(() => graph.Run(sequences), Throws.TypeOf<MovedWeightsException>().With.Message.Contains("weight has moved"));
            Assert.That(sequences.Select(_cache.LengthOf), Is.All.EqualTo(4));
            graph.Forget();
        }

        for (int i = 5; i <= 8; i++)
        {
            graph.Run(sequences);
            Assert.That(sequences.Select(_cache.LengthOf), Is.All.EqualTo(i));
        }

        Tensor expected = matmul(_heads.narrow(1, 0, 1).reshape(2, 64).to(model.weight!.dtype), model.weight.t()).to(ScalarType.Float32);
        Compare.Close(result, expected, 1e-2, 1e-2, "product of the new weights");
    }

    [Test]
    public void Arguments_are_checked()
    {
        int sequence = _cache.AddSequence();
        DecodeGraph graph = new(_cache, step => Attend(step, Layers));
        Assert.Multiple(() =>
        {
            Assert.That(() => new DecodeGraph(null!, _ => { }), Throws.ArgumentNullException);
            Assert.That(() => new DecodeGraph(_cache, null!), Throws.ArgumentNullException);
            Assert.That(() => graph.Run([]), Throws.ArgumentException);
            Assert.That(() => graph.Run([sequence, sequence]), Throws.ArgumentException);
            Assert.That(() => graph.Run([99]), Throws.TypeOf<SequenceNotFoundException>());
            Assert.That(() => graph.Run([sequence], [2]), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => _cache.BeginStep([sequence], 1).Buffers.Get("", ScalarType.Float32, 1), Throws.ArgumentException);
        });
        graph.Dispose();
        graph.Dispose();
        Assert.That(() => graph.Run([sequence]), Throws.TypeOf<ObjectDisposedException>());
    }

    [Test]
    public void Buffers_stay_where_they_are_until_they_grow()
    {
        int sequence = _cache.AddSequence();
        using CacheStep step = _cache.BeginStep([sequence], 1);
        Tensor small = step.Buffers.Get("x", ScalarType.Float32, 2, 3), other = step.Buffers.Get("y", ScalarType.Float32, 2, 3);
        small.fill_(7);
        other.fill_(8);
        Assert.That(step.Buffers.Get("x", ScalarType.Float32, 3, 2).eq(7).all().item<bool>());
        Tensor large = step.Buffers.Get("x", ScalarType.Float32, 4, 3);
        Assert.That(large.shape, Is.EqualTo(new long[] { 4, 3 }));
        Assert.That(() => step.Buffers.Get("x", ScalarType.Float32, -1), Throws.TypeOf<ArgumentOutOfRangeException>());
    }

    private void Attend(CacheStep step, int layers)
    {
        for (int layer = 0; layer < layers; layer++)
        {
            step.Attend(layer, _heads, _heads, _heads);
        }
    }
}
