using Mustafar.Examples.Llama.Commands;
using Mustafar.Models.Evaluation;

namespace Mustafar.Tests.Evaluation;

[TestFixture]
public sealed class QualityChartTests : TinyLanguageFixture
{
    [TestCase("key_sparsity=0.5", "pruned, 16 bits")]
    [TestCase("FourBits", "8 or 4 bits, nothing pruned")]
    [TestCase("HalfInFourBits", "pruned, 8 or 4 bits")]
    [TestCase("key_sparsity=0, value_bits=8", "pruned, 8 or 4 bits")]
    [TestCase("key_selection=output-aware", "channels chosen otherwise")]
    [TestCase("FourBits, value_selection=per-channel", "8 or 4 bits, nothing pruned")]
    [TestCase("FourBits, eviction=h2o, capacity=64", "tokens removed")]
    [TestCase("key_simulation=fp8-e4m3", "other formats, simulated")]
    public void ASettingIsInOneFamily(string text, string family) =>
        Assert.That(SettingFamilies.Describe(SettingFamilies.Of(CacheSettingReader.Parse($"a: {text}"))), Is.EqualTo(family));

    [Test]
    public void LayersOfTheirOwnAreAFamily()
    {
        CacheSetting setting = new("a", MustafarPresets.FourBits) { Layers = [MustafarPresets.FourBits, MustafarPresets.EightBits] };
        Assert.That(SettingFamilies.Of(setting), Is.EqualTo(SettingFamily.LayersDiffer));
        Assert.That(SettingFamilies.Of(CacheSetting.Dense), Is.EqualTo(SettingFamily.Dense));
    }

    [Test]
    public void TheFrontHasWhatNothingBeats()
    {
        (double, double)[] points = [(50, 1), (30, 3), (30, 2), (40, 2), (60, 1), (45, 2.5), (20, 9)];
        Assert.That(QualityChart.Front(points), Is.EqualTo(new[] { (20d, 9d), (30d, 2d), (50d, 1d) }));
        Assert.That(QualityChart.Front([]), Is.Empty);
    }

    // Points in a heap, some in one place, and some at the edges.
    [Test]
    public void LabelsOverlapNeitherLabelsNorPoints()
    {
        Random random = new(4);
        Box bounds = new(80, 40, 1100, 640);
        (double X, double Y)[] points =
        [
            .. Enumerable.Range(0, 20).Select(_ => (500 + (150 * random.NextDouble()), 300 + (150 * random.NextDouble()))),
            (85, 45), (1175, 45), (1175, 675), (85, 675), (1100, 300), (1100, 300), (1100, 300),
        ];
        (double Width, double Height)[] sizes = [.. points.Select(_ => (60 + (90 * random.NextDouble()), 15d))];
        Box[] labels = LabelPlacement.Place(points, sizes, bounds);
        using (Assert.EnterMultipleScope())
        {
            for (int i = 0; i < labels.Length; i++)
            {
                Assert.That((labels[i].Width, labels[i].Height), Is.EqualTo(sizes[i]));
                Assert.That(labels[i].Overlap(bounds), Is.EqualTo(sizes[i].Width * sizes[i].Height).Within(1e-6), $"label {i} is in the picture");
                Assert.That(labels[i].DistanceTo(points[i]), Is.LessThan(130), $"label {i} is near its point");
                Assert.That(points.All(point => labels[i].DistanceTo(point) > 5), $"label {i} covers no point");
                for (int j = 0; j < i; j++)
                {
                    Assert.That(labels[i].Overlap(labels[j]), Is.Zero, $"labels {i} and {j}");
                }
            }
        }
    }

    [Test]
    public void ThePictureIsDrawnWhateverWasMeasured()
    {
        using TemporaryDirectory directory = new();
        PerplexityTask task = new(Language, string.Concat(Enumerable.Range(0, 60).Select(i => $"row {i}\n")), 100, 40, windows: 1);
        EvaluationUnit dense = Unit(CacheSetting.Dense, 3.5, 1);
        Draw("dense.png", dense);
        Draw("one.png", dense, Unit(CacheSettingReader.Parse("FourBits"), 3.49, 0.28));
        Draw("some.png", [dense, .. Enumerable.Range(1, 12).Select(i => Unit(CacheSettingReader.Parse($"setting {i}: key_sparsity=0.{i + 10}"), 3.5 + (i * i), 1.0 / i))]);

        EvaluationUnit Unit(CacheSetting setting, double perplexity, double bytes) =>
            new(task, setting, new TaskResult(new Dictionary<string, double> { ["perplexity"] = perplexity, ["bytes_ratio"] = bytes }), 0);

        void Draw(string name, params EvaluationUnit[] units)
        {
            QualityChart.Write(units, directory.File(name));
            Assert.That(new FileInfo(directory.File(name)).Length, Is.GreaterThan(5000));
        }
    }
}
