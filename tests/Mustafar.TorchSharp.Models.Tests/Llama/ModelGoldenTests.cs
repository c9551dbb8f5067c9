using System.Text.Json;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>The model against Hugging Face transformers in float32, with the dense cache.</summary>
[TestFixture]
public sealed class ModelGoldenTests
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 128 };

    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void Load() => _model = Golden.LoadModel(Golden.Checkpoint);

    [OneTimeTearDown]
    public void Unload() => _model.Dispose();

    [TestCase(384)]
    [TestCase(100)]
    [TestCase(1)]
    public void PredictsEachTokenAsTheReferenceDoes(int prefill)
    {
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = ModelCache.Dense(_model);
        Tensor ids = TokenIds.ToTensor(Golden.PromptIds, CPU);
        double[] nll = TeacherForcing.NegativeLogLikelihoods(_model, cache, ids, prefill, includePrompt: true).data<double>().ToArray();
        float[] expected = Golden.Floats("nll_all");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(nll, Has.Length.EqualTo(383));
            Assert.That(Golden.LargestError(nll, expected), Is.LessThan(1e-3));
        }
    }

    [Test]
    public void ScoresWithoutThePromptAreTheLastOnes()
    {
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = ModelCache.Dense(_model);
        Tensor ids = TokenIds.ToTensor(Golden.PromptIds[..48], CPU);
        double[] nll = TeacherForcing.NegativeLogLikelihoods(_model, cache, ids, 16, includePrompt: false).data<double>().ToArray();
        Assert.That(Golden.LargestError(nll, Golden.Floats("nll_all")[15..47]), Is.LessThan(1e-3));
    }

    [Test]
    public void LogitsAfterChunksOfAPromptAreTheReferences()
    {
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = ModelCache.Dense(_model);
        using IDisposable mode = inference_mode();
        Tensor ids = TokenIds.ToTensor(Golden.PromptIds, CPU);
        List<Tensor> logits = [];
        foreach ((int start, int count) in new[] { (0, 150), (150, 7), (157, 223), (380, 4) })
        {
            logits.Add(_model.forward(ids.narrow(1, start, count), cache));
        }

        float[] last = cat(logits, 1)[0].narrow(0, 380, 4).reshape(-1).data<float>().ToArray();
        Assert.That(Golden.LargestError([.. last.Select(value => (double)value)], Golden.Floats("logits_last4")), Is.LessThan(2e-3));
    }

    [Test]
    public void GreedyTokensAreTheReferences()
    {
        using ModelCache cache = ModelCache.Dense(_model);
        TokenGenerator generator = new(_model, cache);
        IEnumerable<int> tokens = generator.Generate(
            Golden.PromptIds[..128], new Sampler(SamplingParameters.Greedy), 96, new HashSet<int>());
        Assert.That(tokens, Is.EqualTo(Golden.Numbers(Golden.Json.GetProperty("greedy_96"))));
    }

    [Test]
    public void SequencesOfABatchDoNotSeeOneAnother()
    {
        using DisposeScope scope = NewDisposeScope();
        using IDisposable mode = inference_mode();
        int[] ids = Golden.PromptIds;
        int[] lengths = [40, 1, 97];
        int longest = lengths.Max();
        List<int>[] padded = [.. lengths.Select((length, i) => ids[i..(i + length)].Concat(new int[longest - length]).ToList())];
        using ModelCache together = ModelCache.Dense(_model, lengths.Length);
        Tensor first = _model.NextTokenLogits(TokenIds.ToTensor(padded, CPU), together, lengths);
        Tensor second = _model.NextTokenLogits(tensor(new long[] { 5, 6, 7 }).reshape(3, 1), together);
        for (int i = 0; i < lengths.Length; i++)
        {
            using ModelCache alone = ModelCache.Dense(_model);
            Tensor expectedFirst = _model.NextTokenLogits(TokenIds.ToTensor(ids[i..(i + lengths[i])], CPU), alone);
            Tensor expectedSecond = _model.NextTokenLogits(tensor(new long[] { 5 + i }).reshape(1, 1), alone);
            using (Assert.EnterMultipleScope())
            {
                Assert.That((first[i] - expectedFirst[0]).abs().max().item<float>(), Is.LessThan(1e-3), $"prompt of sequence {i}");
                Assert.That((second[i] - expectedSecond[0]).abs().max().item<float>(), Is.LessThan(1e-3), $"step of sequence {i}");
            }
        }
    }

    [TestCase(ScalarType.BFloat16, 0.05)]
    [TestCase(ScalarType.Float16, 0.02)]
    public void LowPrecisionStaysNearTheReference(ScalarType dtype, double tolerance)
    {
        using DisposeScope scope = NewDisposeScope();
        using LlamaForCausalLM model = Golden.LoadModel(Golden.Checkpoint, dtype);
        using ModelCache cache = ModelCache.Dense(model);
        Tensor ids = TokenIds.ToTensor(Golden.PromptIds, CPU);
        double mean = TeacherForcing.NegativeLogLikelihoods(model, cache, ids, 384, includePrompt: true).mean().item<double>();
        Assert.That(mean, Is.EqualTo(Golden.Floats("nll_all").Average()).Within(tolerance));
    }

    [Test]
    public void StateDictionaryHasTheNamesOfTheCheckpoint()
    {
        using JsonDocument index = JsonDocument.Parse(File.ReadAllText(Path.Combine(Golden.Checkpoint, "model.safetensors.index.json")));
        IEnumerable<string> names = index.RootElement.GetProperty("weight_map").EnumerateObject().Select(weight => weight.Name);
        Assert.That(_model.state_dict().Keys, Is.EquivalentTo(names));
    }

    [Test]
    public void RefusesWhatDoesNotFit()
    {
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = ModelCache.Dense(_model);
        using ModelCache twoLayers = new(new DenseModelCache(2, s_shape, ScalarType.Float32));
        using ModelCache halfCache = new(new DenseModelCache(6, s_shape, ScalarType.Float16));
        Tensor ids = tensor(new long[] { 1, 2 }).reshape(1, 2);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => _model.forward(ids.to(ScalarType.Int32), cache), Throws.ArgumentException.With.Message.Contains("Int64"));
            foreach (long[] shape in (long[][])[[2], [2, 1], [1, 0], [1, 1, 2]])
            {
                Assert.That(
                    () => _model.forward(ids.new_zeros(shape), cache),
                    Throws.ArgumentException.With.Message.Contains($"[1, tokens], at least one for each of the cache's sequences, but got [{string.Join(", ", shape)}]"));
            }

            Assert.That(() => _model.forward(ids, twoLayers), Throws.ArgumentException.With.Message.Contains("6 layers"));
            Assert.That(() => _model.forward(ids, halfCache), Throws.ArgumentException.With.Message.Contains("Float16"));
            Assert.That(() => _model.NextTokenLogits(ids, cache, [3]), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(cache.Length, Is.Zero);
        }
    }
}
