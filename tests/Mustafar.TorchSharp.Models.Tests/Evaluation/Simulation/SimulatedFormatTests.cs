using Mustafar.Models.Checkpoint;
using Mustafar.Models.Evaluation;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Evaluation.Simulation;

/// <summary>Simulated formats against rows that were computed by hand.</summary>
[TestFixture]
public sealed class SimulatedFormatTests : TinyLanguageFixture
{
    private DisposeScope _scope = null!;

    [SetUp]
    public void Begin() => _scope = NewDisposeScope();

    [TearDown]
    public void End() => _scope.Dispose();

    // 1.0625 and 1.1875 are halfway; below 2^-6 steps are 2^-9.
    [Test]
    public void E4M3IsToTheNearest()
    {
        float[] numbers = [0, 1, 1.0625f, 1.1875f, -17.6f, 447, -500, 1 / 1024f, 0.002f, 0.0157f, float.NaN, float.NegativeInfinity];
        float[] expected = [0, 1, 1, 1.25f, -18, 448, -448, 0, 1 / 512f, 1 / 64f, float.NaN, -448];
        Assert.That(Rewritten("fp8-e4m3", keys: true, numbers), Is.EqualTo(expected));
        Assert.That(Rewritten("fp8-e4m3", keys: false, numbers), Is.EqualTo(expected));
    }

    // Steps of 31 / 3 from 0, and of 93 / 3 from −62, as Float16 has them; the third group has but one number.
    [Test]
    public void IntegersOfAGroupAreStepsFromItsSmallestNumber()
    {
        float[] numbers =
        [
            .. Enumerable.Range(0, 32).Select(i => (float)i), .. Enumerable.Range(0, 32).Select(i => 31f - (3 * i)), .. Enumerable.Repeat(-3f, 32),
        ];
        const float step = 10.3359375f;
        float[] expected =
        [
            .. Enumerable.Range(0, 32).Select(i => step * (i < 6 ? 0 : i < 16 ? 1 : i < 26 ? 2 : 3)),
            .. Enumerable.Range(0, 32).Select(i => -62f + (31 * (i < 6 ? 3 : i < 16 ? 2 : i < 26 ? 1 : 0))),
            .. Enumerable.Repeat(-3f, 32),
        ];
        Assert.That(Rewritten("int2-g32", keys: true, numbers), Is.EqualTo(expected));
        Assert.That(Rewritten("int2-g32", keys: false, numbers), Is.EqualTo(expected));
    }

    // The numbers of a group of 64 are 63 apart, of which steps of 2 bits are 21, and those of 3 bits 9.
    [TestCase("kivi-int2", 21)]
    [TestCase("kivi-int3", 9)]
    public void KiviHasKeysByChannelAndValuesByToken(string name, int step)
    {
        const int tokens = 128, channels = 64;
        float[] numbers = new float[tokens * channels], keys = new float[numbers.Length], values = new float[numbers.Length];
        for (int t = 0; t < tokens; t++)
        {
            for (int c = 0; c < channels; c++)
            {
                int i = (t * channels) + c;
                numbers[i] = t + c;
                keys[i] = c + (t / 64 * 64) + (step * (((t % 64) + (step / 2)) / step));
                values[i] = t + (step * ((c + (step / 2)) / step));
            }
        }

        Assert.That(Rewritten(name, keys: true, numbers, channels), Is.EqualTo(keys));
        Assert.That(Rewritten(name, keys: false, numbers, channels), Is.EqualTo(values));
    }

    // The mean of 1, 2, 0 and 3 is 1.5; the scale of 4 bits is 5 / 7 as Float16 has it.
    [Test]
    public void PrunedChannelsHaveTheirSignAndMeanMagnitude()
    {
        float[] numbers = [5, -4, 1, -2, 0, 3];
        const float scale = 0.71435546875f;
        Assert.That(Rewritten("signs-2", keys: true, numbers), Is.EqualTo(new[] { 5, -4, 1.5f, -1.5f, 1.5f, 1.5f }));
        Assert.That(Rewritten("signs-2-int4", keys: false, numbers), Is.EqualTo(new[] { 7 * scale, -6 * scale, 1.5f, -1.5f, 1.5f, 1.5f }));
    }

    [TestCase("fp8-e4m3", 8)]
    [TestCase("int8-g128", 8.25)]
    [TestCase("int4-g64", 4.5)]
    [TestCase("int3-g32", 4)]
    [TestCase("kivi-int2", 2.5)]
    [TestCase("signs-40", (128 + 640 + 88 + 16) / 128.0)]
    [TestCase("signs-40-int4", (128 + 160 + 16 + 88 + 16) / 128.0)]
    public void BitsCountAllThatBelongsToAFormat(string name, double bits) =>
        Assert.That(SimulatedFormat.Named(name).BitsPerNumber(128), Is.EqualTo(bits).Within(1e-12));

    [TestCase("fp8")]
    [TestCase("int5-g64")]
    [TestCase("int4-g16")]
    [TestCase("int4")]
    [TestCase("kivi-4")]
    [TestCase("signs-0")]
    [TestCase("signs-40-int8")]
    [TestCase("")]
    public void UnknownFormatsAreRefused(string name) => Assert.That(
        () => SimulatedFormat.Named(name), Throws.ArgumentException.With.Message.Contains("signs-KEPT").And.Message.Contains($"'{name}'"));

    // The tiny model's head_dim is 64.
    [TestCase("key_simulation=signs-64", "above 64")]
    [TestCase("value_simulation=int4-g128", "multiple of 128")]
    [TestCase("value_simulation=kivi-int4, group_size=32", "multiple of 64 tokens")]
    public void AModelThatAFormatDoesNotFitIsRefused(string text, string expected) => Assert.That(
        () => CacheSettingReader.Parse($"a: {text}").CheckFits(Language.Model.Config, "config.json"),
        Throws.TypeOf<UnsupportedModelException>().With.Message.Contains(expected).And.Message.Contains("'a'"));

    // Of 199 tokens in the cache 128 are compressed; the model has two layers with one head each and stores Float32.
    [Test]
    public void ReportsHaveTheBytesOfTheFormatAndSayThatTheyAreSimulated()
    {
        CacheSetting setting = CacheSettingReader.Parse("a: key_simulation=signs-24, value_simulation=int2-g32");
        string text = string.Concat(Enumerable.Range(0, 60).Select(i => $"row {i * 7919 % 1000}\n"));
        PerplexityTask task = new(Language, text, 200, 40, windows: 1);
        TaskResult result = task.Summarize([task.MeasurePart(setting, 0, new Progress<double>(), default)]);
        const double compressedBits = 128 * ((64 + (24 * 16) + 40 + 16) + (64 * 3)), denseBits = 71 * 2 * 64 * 32;
        string report = new EvaluationReport([new EvaluationUnit(task, setting, result, 1)]).ToMarkdown();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Metrics["bytes"], Is.EqualTo(2 * (compressedBits + denseBits) / 8));
            Assert.That(result.Metrics["kl_mean"], Is.GreaterThan(1e-7), "beyond rounding");
            Assert.That(report, Does.Contain("| a (simulated) |"));
        }
    }

    private static float[] Rewritten(string name, bool keys, float[] numbers, int headDim = 0)
    {
        SimulatedFormat format = SimulatedFormat.Named(name);
        ChannelSelection selection = keys ? format.Keys : format.Values;
        int channels = headDim == 0 ? numbers.Length : headDim;
        Tensor tokens = tensor(numbers).reshape(1, -1, channels);
        Tensor rewritten = selection.Function!(new SelectionInput(tokens, 0, 0, channels));
        Assert.That(rewritten.shape, Is.EqualTo(tokens.shape));
        return rewritten.contiguous().data<float>().ToArray();
    }
}
