using Mustafar.Models.Llama;

namespace Mustafar.Tests.Llama;

/// <summary>A model with a sliding window of 48 tokens, on texts of 160.</summary>
[TestFixture]
public sealed class SlidingWindowTests
{
    private const string Name = "mistral";

    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void Load() => _model = Golden.LoadModel(TinyGolden.Directory(Name));

    [OneTimeTearDown]
    public void Unload() => _model.Dispose();

    [TestCase(new[] { 160 })]
    [TestCase(new[] { 50, 7, 1, 60, 42 })]
    public void TheWindowOfTheConfigGivesTheReference(int[] cuts)
    {
        using ModelCache cache = Caches(_model.Config.WindowOf);
        TinyGolden.AssertLogits(_model, cache, Name, cuts);
    }

    [Test]
    public void AnotherWindowDoesNot()
    {
        foreach (int? window in (int?[])[47, 49, null])
        {
            using ModelCache cache = Caches(_ => window);
            Assert.That(TinyGolden.Errors(_model, cache, Name, [160]).Logits, Is.GreaterThan(4e-3), $"{window}");
        }
    }

    private ModelCache Caches(Func<int, int?> windowOf) => LayerCaches.Of(Enumerable.Range(0, _model.Config.NumLayers).Select(
        layer => new PrunedDenseCache(
            _model.Config.KeyValueShape, new MustafarOptions { KeySparsity = 0, ValueSparsity = 0 }, windowOf(layer))));
}
