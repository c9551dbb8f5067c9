using Mustafar.Modules;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Tests.Modules;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
public sealed class MustafarAttentionTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 8 };
    private readonly Device _device = new(device);

    private static readonly MustafarAttentionOptions s_options = new() { HiddenSize = 24, NumHeads = 4, NumKvHeads = 2, HeadDim = 8 };

    private RotaryEmbedding _rotary = null!;

    [SetUp]
    public void MakeRotary() => _rotary = new RotaryEmbedding(new RotaryOptions { HeadDim = 8 });

    [TearDown]
    public void DisposeRotary() => _rotary.Dispose();

    [Test]
    public void StateDictionaryHasTheNamesOfCheckpoints([Values] bool qkvBias, [Values] bool outputBias)
    {
        using MustafarAttention attention = new(s_options with { QkvBias = qkvBias, OutputBias = outputBias }, _rotary, ScalarType.BFloat16, _device);
        List<string> expected = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"];
        expected.AddRange(qkvBias ? ["q_proj.bias", "k_proj.bias", "v_proj.bias"] : []);
        expected.AddRange(outputBias ? ["o_proj.bias"] : []);
        Dictionary<string, Tensor> state = attention.state_dict();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(state.Keys, Is.EquivalentTo(expected));
            Assert.That(state["k_proj.weight"].shape, Is.EqualTo(new long[] { 16, 24 }));
            Assert.That(state["o_proj.weight"].shape, Is.EqualTo(new long[] { 24, 32 }));
            Assert.That(state.Values.All(weight => weight.dtype == ScalarType.BFloat16));
            Assert.That(attention.parameters().Any(parameter => parameter.requires_grad), Is.False);
        }
    }

    /// <summary>Sequences of one cache, at positions of their own, as if each had a cache of its own.</summary>
    [Test]
    public void AStepIsWhatCachesOfOneSequenceGive()
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(5);
        using MustafarAttention attention = Random(s_options);
        using DenseModelCache cache = new(2, s_shape, ScalarType.Float32, _device);
        int[] sequences = [cache.AddSequence(), cache.AddSequence()];
        DenseCache[] alone = [.. sequences.Select(_ => new DenseCache(1, s_shape, ScalarType.Float32, _device))];
        foreach (int[] counts in (int[][])[[5, 2], [1, 1], [0, 3]])
        {
            Tensor hidden = randn(2, counts.Max(), 24, device: _device);
            using CacheStep step = cache.BeginStep(sequences, counts.Max(), counts);
            _ = attention.forward(hidden, step, 0);
            Tensor actual = attention.forward(hidden, step, 1);
            step.Commit();
            for (int b = 0; b < sequences.Length; b++)
            {
                Tensor expected = attention.forward(hidden.narrow(0, b, 1), alone[b], [counts[b]]);
                Tensor difference = (actual[b] - expected[0]).narrow(0, 0, counts[b]).abs();
                Assert.That(counts[b] == 0 || difference.max().item<float>() < 1e-5, $"sequence {b}");
            }
        }

        Array.ForEach(alone, one => one.Dispose());
        using CacheStep other = cache.BeginStep(sequences, 1);
        Assert.That(() => attention.forward(randn(1, 1, 24, device: _device), other, 0), Throws.ArgumentException.With.Message.Contains("[2, tokens, 24]"));
        using DenseModelCache wide = new(1, new() { NumKvHeads = 2, HeadDim = 16 }, ScalarType.Float32, _device);
        using CacheStep misfit = wide.BeginStep([wide.AddSequence()], 1);
        Assert.That(() => attention.forward(randn(1, 1, 24, device: _device), misfit, 0), Throws.ArgumentException.With.Message.Contains("heads of 8"));
    }

    /// <summary>Weights in one tensor, apart from each other, and projections that are no linear layers.</summary>
    [Test]
    public void AddingToHiddenStatesIsTheLayerBehindItsNorm(
        [Values("together", "apart", "modules")] string projections, [Values] bool bias, [Values] bool normalised)
    {
        using DisposeScope scope = NewDisposeScope();
        using IDisposable noGrad = no_grad();
        manual_seed(6);
        MustafarAttentionOptions options = s_options with { QkvBias = bias, OutputBias = bias, QueryKeyNormEps = normalised ? 1e-3 : null };
        using MustafarAttention attention = projections == "together" ? Random(options) : new MustafarAttention(
            options, _rotary, Projection(24, 32), Projection(24, 16), Projection(24, 16), Projection(32, 24),
            normalised ? HeadNorm() : null, normalised ? HeadNorm() : null);
        RmsNorm norm = new(24, 1e-5, ScalarType.Float32, _device);
        norm.Weight.uniform_(0.5, 1.5);
        using DenseModelCache cache = new(2, s_shape, ScalarType.Float32, _device), expected = new(2, s_shape, ScalarType.Float32, _device);
        int[] sequences = [cache.AddSequence(), cache.AddSequence()], others = [expected.AddSequence(), expected.AddSequence()];
        foreach (int tokens in new[] { 4, 1, 1 })
        {
            Tensor hidden = randn(2, tokens, 24, device: _device), plain = hidden.clone();
            using CacheStep step = cache.BeginStep(sequences, tokens), other = expected.BeginStep(others, tokens);
            for (int layer = 0; layer < 2; layer++)
            {
                attention.AddTo(hidden, norm, step, layer);
                plain.add_(attention.forward(norm.call(plain), other, layer));
            }

            step.Commit();
            other.Commit();
            Assert.That((hidden - plain).abs().max().item<float>(), Is.LessThan(1e-4), $"{tokens} tokens");
        }

        using CacheStep refused = cache.BeginStep(sequences, 2);
        Assert.That(
            () => attention.AddTo(randn(2, 24, 2, device: _device).transpose(1, 2), norm, refused, 0),
            Throws.ArgumentException.With.Property("ParamName").EqualTo("hidden"));

        nn.Module<Tensor, Tensor> Projection(int inputs, int outputs)
        {
            Linear linear = nn.Linear(inputs, outputs, bias, device: _device);
            return projections == "apart" ? linear : nn.Sequential(linear);
        }

        RmsNorm HeadNorm()
        {
            RmsNorm made = new(8, 1e-3, ScalarType.Float32, _device);
            made.Weight.uniform_(0.5, 1.5);
            return made;
        }
    }

    [Test]
    public void WeightsThatLieTogetherAreOneTensor()
    {
        using DisposeScope scope = NewDisposeScope();
        Linear[] layers = Weights.Linears(6, [4, 2, 2], bias: true, ScalarType.Float32, _device);
        Tensor joint = Weights.Joint([.. layers.Select(layer => layer.weight)])!, bias = Weights.Joint([.. layers.Select(layer => layer.bias!)])!;
        Assert.That((joint.shape, bias.shape), Is.EqualTo((new long[] { 8, 6 }, new long[] { 8 })));
        joint.fill_(3);
        Assert.That(layers[2].weight.eq(3).all().item<bool>());
        Assert.That(Weights.Joint(layers[1].weight, layers[0].weight), Is.Null);
        Assert.That(Weights.Joint(layers[0].weight, layers[2].weight), Is.Null);
        Assert.That(Weights.Joint(layers[0].weight, layers[0].weight.clone()), Is.Null);
        Assert.That(Weights.Joint(), Is.Null);
    }

    /// <summary>A new layer computes something sensible, with no gradient even from a hidden state that asks for one.</summary>
    [Test]
    public void ANewLayerHasWeights([Values] bool bias)
    {
        using var scope = NewDisposeScope();
        using MustafarAttention attention = new(s_options with { QkvBias = bias, OutputBias = bias, QueryKeyNormEps = 1e-6 }, _rotary);
        double most = 1 / Math.Sqrt(s_options.HiddenSize);
        foreach ((string name, Tensor value) in attention.state_dict())
        {
            float[] numbers = Oracle.Values.Of(value);
            Assert.That(numbers, name.Contains("norm") ? Is.All.EqualTo(1) : Is.All.InRange(-most * 2, most * 2), name);
            Assert.That(numbers.Distinct().Count(), name.Contains("norm") ? Is.EqualTo(1) : Is.GreaterThan(numbers.Length / 2), name);
        }

        using DenseCache cache = new(1, s_options.KeyValueShape, ScalarType.Float32);
        Tensor output = attention.forward(randn(1, 5, s_options.HiddenSize, requires_grad: true), cache);
        Assert.That(Oracle.Values.Of(output), Has.All.Matches<float>(float.IsFinite).And.Some.Not.Zero);
    }

    [Test]
    public void NormalisesEachHeadsQueryAndKeyBeforeItsPosition()
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(4);
        const double eps = 0.25; // large enough to matter
        using MustafarAttention attention = Random(s_options with { QueryKeyNormEps = eps });
        Dictionary<string, Tensor> state = attention.state_dict();
        Tensor hidden = randn(2, 5, 24, device: _device);
        using DenseCache cache = NewCache();
        using DenseCache expectedCache = NewCache();
        Tensor Heads(string projection, int heads) => nn.functional.linear(hidden, state[projection]).reshape(2, 5, heads, 8);
        Tensor Normal(Tensor x, string norm) => x / (x.square().mean([-1], keepdim: true) + eps).sqrt() * state[norm];
        (Tensor query, Tensor key) = _rotary.Apply(
            Normal(Heads("q_proj.weight", 4), "q_norm.weight"), Normal(Heads("k_proj.weight", 2), "k_norm.weight"), [0, 0]);
        Tensor attended = expectedCache.Forward(query.transpose(1, 2), key.transpose(1, 2), Heads("v_proj.weight", 2).transpose(1, 2));
        Tensor expected = nn.functional.linear(attended.transpose(1, 2).reshape(2, 5, 32), state["o_proj.weight"]);
        Assert.That((attention.forward(hidden, cache) - expected).abs().max().item<float>(), Is.LessThan(1e-5));
    }

    [Test]
    public void ParametersOutliveTheScopeTheyAreMadeIn()
    {
        MustafarAttention attention;
        using (NewDisposeScope())
        {
            attention = new MustafarAttention(s_options, _rotary);
        }

        Assert.That(attention.parameters().All(parameter => !parameter.IsInvalid));
        attention.Dispose();
    }

    [Test]
    public void OutputDoesNotDependOnHowATextIsCut()
    {
        using DisposeScope scope = NewDisposeScope();
        using MustafarAttention attention = Random();
        Tensor hidden = randn(2, 20, 24, device: _device);
        using DenseCache whole = NewCache();
        using DenseCache cut = NewCache();
        Tensor expected = attention.forward(hidden, whole);
        List<Tensor> parts = [];
        foreach ((int start, int count) in new[] { (0, 1), (1, 9), (10, 1), (11, 9) })
        {
            parts.Add(attention.forward(hidden.narrow(1, start, count), cut));
        }

        Assert.That((cat(parts, 1) - expected).abs().max().item<float>(), Is.LessThan(1e-5));
    }

    [Test]
    public void EachSequenceHasItsOwnLength()
    {
        using DisposeScope scope = NewDisposeScope();
        using MustafarAttention attention = Random();
        Tensor first = randn(2, 6, 24, device: _device);
        Tensor second = randn(2, 1, 24, device: _device);
        using DenseCache together = NewCache();
        attention.forward(first, together, [6, 2]);
        Tensor output = attention.forward(second, together);
        using DenseCache alone = new(1, s_shape, ScalarType.Float32, _device);
        attention.forward(first.narrow(0, 1, 1).narrow(1, 0, 2), alone);
        Tensor expected = attention.forward(second.narrow(0, 1, 1), alone);
        Assert.That((output[1] - expected[0]).abs().max().item<float>(), Is.LessThan(1e-5));
    }

    [Test]
    public void SharesGivenProjections()
    {
        using DisposeScope scope = NewDisposeScope();
        using MustafarAttention attention = Random();
        IReadOnlyDictionary<string, nn.Module> children = attention.named_children().ToDictionary(child => child.name, child => child.module);
        nn.Module<Tensor, Tensor> Child(string name) => (nn.Module<Tensor, Tensor>)children[name];
        MustafarAttention sharing = new(s_options, _rotary, Child("q_proj"), Child("k_proj"), Child("v_proj"), Child("o_proj"));
        Tensor hidden = randn(2, 3, 24, device: _device);
        using DenseCache a = NewCache();
        using DenseCache b = NewCache();
        Assert.That(attention.forward(hidden, a).equal(sharing.forward(hidden, b)).all().item<bool>());
    }

    [Test]
    public void RefusesWhatDoesNotFit()
    {
        using DisposeScope scope = NewDisposeScope();
        using MustafarAttention attention = Random();
        using DenseCache cache = NewCache();
        using DenseCache otherHeads = new(2, new() { NumKvHeads = 1, HeadDim = 8 }, ScalarType.Float32, _device);
        using RotaryEmbedding otherRotary = new(new RotaryOptions { HeadDim = 16 });
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => attention.forward(ones(2, 3, 23, device: _device), cache), Throws.ArgumentException.With.Message.Contains("[2, 3, 23]"));
            Assert.That(() => attention.forward(ones(1, 3, 24, device: _device), cache), Throws.ArgumentException.With.Message.Contains("[1, 3, 24]"));
            Assert.That(() => attention.forward(ones(2, 3, 24, device: _device), otherHeads), Throws.ArgumentException.With.Message.Contains("2 heads of 8"));
            Assert.That(
                () => new MustafarAttention(s_options with { NumKvHeads = 3 }, _rotary), Throws.ArgumentException.With.Message.Contains("multiple of 3"));
            Assert.That(() => new MustafarAttention(s_options with { HeadDim = 0 }, _rotary), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new MustafarAttention(s_options, otherRotary), Throws.ArgumentException.With.Message.Contains("heads of 8"));
            Assert.That(cache.Length, Is.Zero);
        }
    }

    private DenseCache NewCache() => new(2, s_shape, ScalarType.Float32, _device);

    private MustafarAttention Random(MustafarAttentionOptions? options = null)
    {
        manual_seed(9);
        MustafarAttention attention = new(options ?? s_options, _rotary, device: _device);
        foreach (Parameter parameter in attention.parameters())
        {
            parameter.normal_(0, 0.2);
        }

        return attention;
    }
}
