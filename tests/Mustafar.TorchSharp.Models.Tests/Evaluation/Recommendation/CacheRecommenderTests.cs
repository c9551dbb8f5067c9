using System.Globalization;
using Mustafar.Models.Evaluation;

namespace Mustafar.Tests.Evaluation.Recommendation;

[TestFixture]
public sealed class CacheRecommenderTests : TinyLanguageFixture
{
    private const int Context = 160;
    private const int Prefill = 80;

    // Of 64 channels: in 8 bits 66 of 128 bytes, half of them in 4 bits 8 + 16 + 2 of 128.
    private static readonly MustafarOptions[] s_candidates =
    [
        new() { KeySparsity = 0, ValueSparsity = 0, KeyBits = 8, ValueBits = 8 },
        new() { KeySparsity = 0.5, ValueSparsity = 0.5, KeyBits = 4, ValueBits = 4 },
        new() { KeySparsity = 0.75, ValueSparsity = 0.75, KeyBits = 4, ValueBits = 4, KeyChannelScales = false },
    ];

    private TemporaryDirectory _results = null!;

    [SetUp]
    public void MakeResults() => _results = new TemporaryDirectory();

    [TearDown]
    public void RemoveResults() => _results.Dispose();

    [Test]
    public void TheRecommendedSettingIsMeasuredAndWithinTheBytes([Values(0.19, 0.25, 0.4, 0.52)] double ratio)
    {
        CacheRecommendation found = Recommend(RecommendationBudget.OfBytes(ratio));
        MustafarOptions[] layers = [.. found.Setting.Layers!];
        Dictionary<(double, int), int> rowBytes = new() { [(0, 16)] = 256, [(0, 8)] = 66, [(0.5, 4)] = 26, [(0.75, 4)] = 18 };
        int bytes = layers.Sum(layer => rowBytes[(layer.KeySparsity, layer.KeyBits)] + rowBytes[(layer.ValueSparsity, layer.ValueBits)]);
        TaskResult again = Measure(Task(Text(1)), found.Setting);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(layers, Has.Length.EqualTo(2));
            Assert.That(bytes / (2.0 * 2 * 128), Is.LessThanOrEqualTo(ratio).And.EqualTo(found.OnCheckText[1].BytesRatio).Within(1e-12));
            Assert.That(found.OnCheckText.Select(one => one.Unit.Setting.Name), Is.EqualTo(new[] { "dense", "recommended", "all layers alike" }));
            Assert.That(found.OnCheckText[1].Unit.Value("mean_nll"), Is.EqualTo(again.Metrics["mean_nll"]).Within(1e-9));
            Assert.That(found.OnSearchText[2].BytesRatio, Is.LessThanOrEqualTo(ratio));
            Assert.That(
                found.OnSearchText[1].Unit.Value("mean_nll"), Is.LessThanOrEqualTo(found.OnSearchText[2].Unit.Value("mean_nll")),
                "not worse than all layers alike, on the text that it was found on");
        }
    }

    [Test]
    public void LossesAreThoseOfOneFormatAlone()
    {
        CacheRecommendation found = Recommend(RecommendationBudget.OfBytes(0.3));
        Assert.That(found.Losses, Has.Count.EqualTo(2 * 2 * 4));
        MustafarOptions plain = new() { KeySparsity = 0, ValueSparsity = 0 };
        CacheSetting alone = new("alone", plain) { Layers = [plain, plain with { ValueSparsity = 0.5, ValueBits = 4 }] };
        double expected = Measure(Task(Text(0)), alone).Metrics["kl_mean"] - Measure(Task(Text(0)), CacheSetting.Dense).Metrics["kl_mean"];
        FormatLoss[] losses = [.. found.Losses.Where(loss => loss is { Layer: 1, IsKeys: false, Format: "32 of 64 in 4 bits" })];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(losses.Select(loss => loss.Loss), Is.EqualTo(new[] { expected }).Within(1e-9));
            Assert.That(losses[0].BytesRatio, Is.EqualTo(26.0 / 128).Within(1e-12));
            Assert.That(found.Losses.Where(loss => loss.Format == "all as they are").Select(loss => loss.Loss), Is.All.Zero);
            Assert.That(
                found.OnSearchText[1].EstimatedLoss, Is.EqualTo(found.Layers.Sum(layer => layer.KeysLoss + layer.ValuesLoss)).Within(1e-12));
            Assert.That(found.Losses.Select(loss => loss.Format).Distinct(), Is.EquivalentTo(new[]
            {
                "all as they are", "all in 8 bits", "32 of 64 in 4 bits", "16 of 64 in 4 bits, no channel scales", "16 of 64 in 4 bits",
            }));
        }
    }

    [Test]
    public void ABudgetOfQualityIsKeptToOnTheSearchedText([Values(1.0005, 1.003)] double ratio)
    {
        CacheRecommendation found = Recommend(RecommendationBudget.OfPerplexity(ratio));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(
                found.OnSearchText[1].Unit.Value("perplexity") / found.OnSearchText[0].Unit.Value("perplexity"), Is.LessThanOrEqualTo(ratio));
            Assert.That(found.OnSearchText[1].BytesRatio, Is.LessThan(0.52));
        }
    }

    [Test]
    public void WhatIsMeasuredIsNotMeasuredAgain()
    {
        List<string> first = [], second = [];
        CacheRecommendation found = Recommend(RecommendationBudget.OfBytes(0.3), first);
        CacheRecommendation again = Recommend(RecommendationBudget.OfBytes(0.3), second);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(first, Has.Count.GreaterThan(12));
            Assert.That(second, Is.Empty);
            Assert.That(again.ToJson().ToJsonString(), Is.EqualTo(found.ToJson().ToJsonString()));
        }
    }

    [Test]
    public void AStoppedSearchKeepsWhatIsFinished()
    {
        using CancellationTokenSource stop = new();
        List<string> first = [], second = [];
        Assert.That(() => Recommend(RecommendationBudget.OfBytes(0.3), first, stop, after: 4), Throws.InstanceOf<OperationCanceledException>());
        Recommend(RecommendationBudget.OfBytes(0.3), second);
        Assert.That(first, Has.Count.EqualTo(4));
        Assert.That(second.Take(8), Has.No.AnyOf(first.ToArray<object>()));
    }

    [Test]
    public void WhatCanNotBeIsRefused()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(
                () => Recommend(RecommendationBudget.OfBytes(0.1)), Throws.ArgumentException.With.Message.Contains("0.141").And.Message.Contains("0.1"));
            Assert.That(() => RecommendationBudget.OfBytes(0), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => RecommendationBudget.OfBytes(double.NaN), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => RecommendationBudget.OfPerplexity(1), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(
                () => new CacheRecommender(Task(Text(0)), Task(Text(1)), _results.Path, candidates: [new() { BalancedKeys = true, KeySparsity = 0.1 }]),
                Throws.TypeOf<NotSupportedException>());
        }
    }

    [Test]
    public void WithoutCandidatesCommonFormatsAreTried()
    {
        CandidateFormats formats = new(Language, new MustafarOptions(), null);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(formats.Keys.Select(format => format.Name), Does.Contain("all in 4 bits").And.Contain("all in 4 bits, no channel scales"));
            Assert.That(formats.Values.Select(format => format.Name), Does.Contain("32 of 64 in 8 bits").And.Unique);
            Assert.That(formats.Pairs, Has.Count.EqualTo(formats.Keys.Count * formats.Values.Count));
        }
    }

    private static string Text(int number) => string.Concat(Enumerable.Range(0, 120).Select(
        i => string.Create(CultureInfo.InvariantCulture, $"{number} row {i * 7919 % 1000}\n")));

    private PerplexityTask Task(string text) => new(Language, text, Context, Prefill, windows: 2, batch: 2, step: 4);

    private static TaskResult Measure(PerplexityTask task, CacheSetting setting) =>
        task.Summarize([task.MeasurePart(setting, 0, new Progress<double>(), default)]);

    private CacheRecommendation Recommend(RecommendationBudget budget, List<string>? told = null, CancellationTokenSource? stop = null, int after = 0)
    {
        CacheRecommender recommender = new(Task(Text(0)), Task(Text(1)), _results.Path, candidates: s_candidates);
        return recommender.Recommend(budget, new Follower(Follow), stop?.Token ?? default);

        void Follow(EvaluationProgress progress)
        {
            string name = $"{progress.Task.Inputs["text_sha256"]} {string.Concat(progress.Setting.ToJson().ToJsonString())}";
            if (progress.Share == 1 && told?.LastOrDefault() != name)
            {
                told?.Add(name);
                if (told?.Count == after)
                {
                    stop?.Cancel();
                }
            }
        }
    }

    private sealed class Follower(Action<EvaluationProgress> follow) : IProgress<EvaluationProgress>
    {
        public void Report(EvaluationProgress value) => follow(value);
    }
}
