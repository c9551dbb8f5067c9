using System.Text.Json.Nodes;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>
/// Every architecture of the family against Hugging Face transformers in float32: small models of random weights, 160 tokens each.
/// </summary>
[TestFixtureSource(nameof(Fixtures))]
public sealed class FamilyGoldenTests(string name, string device)
{
    private static readonly string[] s_models = ["llama2", "llama31", "mistral", "qwen2", "qwen3"];

    private readonly string _directory = TinyGolden.Directory(name);

    private LlamaForCausalLM _model = null!;

    private static IEnumerable<object[]> Fixtures =>
        from device in TestDevices.All from name in s_models select new object[] { name, device };

    private string GoldenFile => TinyGolden.File(name);

    [OneTimeSetUp]
    public void Load() => _model = Golden.LoadModel(_directory, device: new Device(device));

    [OneTimeTearDown]
    public void Unload() => _model.Dispose();

    // One prompt; chunks; and token by token from the start.
    [TestCase(new[] { 160 })]
    [TestCase(new[] { 50, 7, 1, 1, 60, 41 })]
    [TestCase(new int[0])]
    public void LogitsAreTheReferencesHoweverATextIsCut(int[] cuts)
    {
        using ModelCache dense = ModelCache.Dense(_model);
        using ModelCache unpruned = ModelCache.Mustafar(_model, new MustafarOptions { KeySparsity = 0, ValueSparsity = 0, GroupSize = 32 });
        using (Assert.EnterMultipleScope())
        {
            TinyGolden.AssertLogits(_model, dense, name, cuts);
            TinyGolden.AssertLogits(_model, unpruned, name, cuts);
        }
    }

    [Test]
    public void PruningChangesLittleButSomething()
    {
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = ModelCache.Mustafar(_model, new MustafarOptions { KeySparsity = 0.5, ValueSparsity = 0.5, GroupSize = 32 });
        Tensor ids = tensor(Golden.Longs(GoldenFile, "ids"), device: new Device(device)).reshape(1, -1);
        double[] nll = TeacherForcing.NegativeLogLikelihoods(_model, cache, ids, 1, includePrompt: true).cpu().data<double>().ToArray();
        double error = Golden.LargestError(nll, Golden.Floats(GoldenFile, "nll"));
        Assert.That(error, Is.GreaterThan(1e-3).And.LessThan(2));
    }

    [TestCase(ScalarType.BFloat16, 0.03)]
    [TestCase(ScalarType.Float16, 0.005)]
    public void LowPrecisionStaysNearTheReference(ScalarType dtype, double tolerance)
    {
        using DisposeScope scope = NewDisposeScope();
        using LlamaForCausalLM model = Golden.LoadModel(_directory, dtype, new Device(device));
        Tensor ids = tensor(Golden.Longs(GoldenFile, "ids"), device: new Device(device)).reshape(1, -1);
        foreach (ModelCache cache in (ModelCache[])
            [ModelCache.Dense(model), ModelCache.Mustafar(model, new MustafarOptions { KeySparsity = 0, ValueSparsity = 0 })])
        {
            using (cache)
            {
                double mean = TeacherForcing.NegativeLogLikelihoods(model, cache, ids, 64, includePrompt: true).mean().item<double>();
                Assert.That(mean, Is.EqualTo(Golden.Floats(GoldenFile, "nll").Average()).Within(tolerance));
            }
        }
    }

    [Test]
    public void TheConfigOfTransformers4GivesTheSameModel()
    {
        JsonObject config = JsonNode.Parse(File.ReadAllText(Path.Combine(_directory, "config.json")))!.AsObject();
        JsonObject rope = config["rope_parameters"]!.DeepClone().AsObject();
        config.Remove("rope_parameters");
        config["rope_theta"] = rope["rope_theta"]!.DeepClone();
        rope.Remove("rope_theta");
        config["rope_scaling"] = rope["rope_type"]!.GetValue<string>() == "default" ? null : rope;
        config["torch_dtype"] = config["dtype"]!.DeepClone();
        config.Remove("dtype");
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("config.json"), config.ToJsonString());
        LlamaConfig expected = _model.Config;
        LlamaConfig actual = LlamaConfig.Load(directory.File("config.json"));
        Assert.That(
            actual with { EosTokenIds = expected.EosTokenIds, SlidingLayers = expected.SlidingLayers }, Is.EqualTo(expected));
    }
}
