using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>The whole model on the compressed cache, against the same model on dense tokens that are pruned by the rule.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
public sealed class MustafarModelTests(string device)
{
    private readonly Device _device = new(device);

    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void Load() => _model = Golden.LoadModel(Golden.Checkpoint, device: _device);

    [OneTimeTearDown]
    public void Unload() => _model.Dispose();

    [TestCase(0.6875, 0.6875, 32, 64, 160)]
    [TestCase(0.5, 0.8125, 0, 32, 1)]
    [TestCase(0.8125, 0.5, 48, 96, 97)]
    public void DecodesAsOnPrunedDenseTokens(double keySparsity, double valueSparsity, int window, int group, int prefill)
    {
        MustafarOptions options = new() { KeySparsity = keySparsity, ValueSparsity = valueSparsity, LocalWindow = window, GroupSize = group };
        using DisposeScope scope = NewDisposeScope();
        using ModelCache compressed = ModelCache.Mustafar(_model, options);
        using ModelCache reference = Reference(options);
        Tensor ids = TokenIds.ToTensor(Golden.PromptIds[..240], _device);
        Tensor actual = TeacherForcing.NegativeLogLikelihoods(_model, compressed, ids, prefill, includePrompt: true);
        Tensor expected = TeacherForcing.NegativeLogLikelihoods(_model, reference, ids, prefill, includePrompt: true);
        using ModelCache dense = ModelCache.Dense(_model);
        Tensor unpruned = TeacherForcing.NegativeLogLikelihoods(_model, dense, ids, prefill, includePrompt: true);
        using (Assert.EnterMultipleScope())
        {
            Assert.That((actual - expected).abs().max().item<double>(), Is.LessThan(1e-3));
            Assert.That((actual - unpruned).abs().max().item<double>(), Is.GreaterThan(0.05), "pruning must have changed something");
            Assert.That(compressed.Length, Is.EqualTo(239));
        }
    }

    [TestCase(ScalarType.BFloat16, false, 0.05)]
    [TestCase(ScalarType.BFloat16, true, 0.05)]
    [TestCase(ScalarType.Float16, false, 0.02)]
    [TestCase(ScalarType.Float16, true, 0.02)]
    public void LowPrecisionStaysNearFloat(ScalarType dtype, bool balanced, double tolerance)
    {
        MustafarOptions options = new() { KeySparsity = 0.6875, ValueSparsity = 0.6875, BalancedKeys = balanced, BalancedValues = balanced };
        using LlamaForCausalLM model = Golden.LoadModel(Golden.Checkpoint, dtype, _device);
        Assert.That(Mean(model), Is.EqualTo(Mean(_model)).Within(tolerance));

        double Mean(LlamaForCausalLM model)
        {
            using DisposeScope scope = NewDisposeScope();
            using ModelCache cache = ModelCache.Mustafar(model, options);
            Tensor ids = TokenIds.ToTensor(Golden.PromptIds, _device);
            return TeacherForcing.NegativeLogLikelihoods(model, cache, ids, 160, includePrompt: false).mean().item<double>();
        }
    }

    // A second turn of a chat: blocks of several tokens over a past that is compressed.
    [Test]
    public void BlocksOfTokensAttendToThePrunedPast()
    {
        MustafarOptions options = new() { GroupSize = 32 };
        using DisposeScope scope = NewDisposeScope();
        using IDisposable mode = inference_mode();
        using ModelCache compressed = ModelCache.Mustafar(_model, options);
        using ModelCache reference = Reference(options);
        Tensor ids = TokenIds.ToTensor(Golden.PromptIds, _device);
        int start = 0;
        foreach (int count in new[] { 100, 7, 1, 45, 3, 80 })
        {
            Tensor part = ids.narrow(1, start, count);
            double error = (_model.forward(part, compressed) - _model.forward(part, reference)).abs().max().item<float>();
            Assert.That(error, Is.LessThan(2e-3), $"{count} tokens after {start}");
            start += count;
        }
    }

    [Test]
    public void SequencesOfABatchDoNotSeeOneAnother()
    {
        MustafarOptions options = new() { GroupSize = 32, LocalWindow = 16 };
        using DisposeScope scope = NewDisposeScope();
        using IDisposable mode = inference_mode();
        int[] lengths = [150, 20, 97];
        List<int>[] padded = [.. lengths.Select((length, i) => Golden.PromptIds[i..(i + length)].Concat(new int[150 - length]).ToList())];
        using ModelCache together = ModelCache.Mustafar(_model, options, lengths.Length);
        Tensor first = _model.NextTokenLogits(TokenIds.ToTensor(padded, _device), together, lengths);
        Tensor second = _model.NextTokenLogits(tensor(new long[] { 5, 6, 7 }, device: _device).reshape(3, 1), together);
        for (int i = 0; i < lengths.Length; i++)
        {
            using ModelCache alone = ModelCache.Mustafar(_model, options);
            Tensor expectedFirst = _model.NextTokenLogits(TokenIds.ToTensor(Golden.PromptIds[i..(i + lengths[i])], _device), alone);
            Tensor expectedSecond = _model.NextTokenLogits(tensor(new long[] { 5 + i }, device: _device).reshape(1, 1), alone);
            using (Assert.EnterMultipleScope())
            {
                Assert.That((first[i] - expectedFirst[0]).abs().max().item<float>(), Is.LessThan(1e-3), $"prompt of sequence {i}");
                Assert.That((second[i] - expectedSecond[0]).abs().max().item<float>(), Is.LessThan(1e-3), $"step of sequence {i}");
            }
        }
    }

    [Test]
    public void WithoutSparsityItIsTheDenseModel()
    {
        MustafarOptions options = new() { KeySparsity = 0, ValueSparsity = 0 };
        using ModelCache cache = ModelCache.Mustafar(_model, options);
        IEnumerable<int> tokens = new TokenGenerator(_model, cache).Generate(
            Golden.PromptIds[..128], new Sampler(SamplingParameters.Greedy), 96, new HashSet<int>());
        Assert.That(tokens, Is.EqualTo(Golden.Numbers(Golden.Json.GetProperty("greedy_96"))));
    }

    [Test]
    public void StepsLeaveNoTensorsBehind()
    {
        using ModelCache cache = ModelCache.Mustafar(_model, new MustafarOptions());
        TokenGenerator generator = new(_model, cache);
        List<long> counts = [];
        foreach (int _ in generator.Generate(Golden.PromptIds[..16], new Sampler(SamplingParameters.Greedy), 40, new HashSet<int>()))
        {
            counts.Add(Tensor.TotalCount);
        }

        // The first steps make what all share; on a GPU the third captures them.
        Assert.That(counts[3..], Is.All.EqualTo(counts[2]));
    }

    private ModelCache Reference(MustafarOptions options) => LayerCaches.Of(
        Enumerable.Range(0, _model.Config.NumLayers).Select(_ => new PrunedDenseCache(
            _model.Config.KeyValueShape, options, device: _device)));
}
