using System.Text.Json.Nodes;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;
using Mustafar.Tests.Llama;

namespace Mustafar.Tests.Evaluation;

[TestFixture]
public sealed class EvaluationRunTests
{
    private static readonly CacheSetting[] s_settings =
        [new("a/b: c", MustafarPresets.FourBits), new("a_b_ c", MustafarPresets.EightBits)];

    [Test]
    public void ASecondRunGoesOnWhereTheFirstWasStopped()
    {
        using Setup setup = new();
        CountingTask task = new(setup.Language, parts: 3) { StopAt = (s_settings[0].Name, 2) };
        Assert.That(() => setup.Run(s_settings, task), Throws.InstanceOf<OperationCanceledException>());
        Assert.That(task.Measured, Is.EqualTo(new[] { "dense 0", "dense 1", "dense 2", "a/b: c 0", "a/b: c 1", "a/b: c 2" }));

        CountingTask second = new(setup.Language, parts: 3);
        List<EvaluationUnit> units = setup.Run(s_settings, second);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(second.Measured, Is.EqualTo(new[] { "a/b: c 2", "a_b_ c 0", "a_b_ c 1", "a_b_ c 2" }));
            Assert.That(units.Select(unit => unit.Value("sum")), Is.All.EqualTo(3));
            Assert.That(units.Select(unit => unit.Setting.Name), Is.EqualTo(new[] { "dense", "a/b: c", "a_b_ c" }));
            Assert.That(units[0].Result.Details!.ToJsonString(), Is.EqualTo("[0,1,2]"));
            Assert.That(units[0].Value("broken"), Is.NaN);
            Assert.That(Directory.GetFiles(setup.Results, "*.jsonl", SearchOption.AllDirectories), Is.Empty);
        }

        CountingTask third = new(setup.Language, parts: 3);
        Assert.That(setup.Run(s_settings, third), Has.Count.EqualTo(3));
        Assert.That(third.Measured, Is.Empty);
    }

    [Test]
    public void ChangedInputsAreMeasuredAnewAndFormerResultsStay()
    {
        using Setup setup = new();
        setup.Run([], new CountingTask(setup.Language, parts: 1));
        string file = Directory.GetFiles(setup.Units).Single();
        CountingTask changed = new(setup.Language, parts: 1, seed: 1);
        setup.Run([], changed);
        CountingTask other = new(setup.Other, parts: 1);
        setup.Run([], other);
        CountingTask setting = new(setup.Language, parts: 1);
        setup.Run([new("x", MustafarPresets.FourBits)], setting);
        setup.Run([new("x", MustafarPresets.FourBits with { LocalWindow = 64 })], setting);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(changed.Measured, Is.EqualTo(new[] { "dense 0" }));
            Assert.That(other.Measured, Is.EqualTo(new[] { "dense 0" }), "another checkpoint");
            Assert.That(setting.Measured, Is.EqualTo(new[] { "x 0", "x 0" }));
            Assert.That(file, Does.Exist);
        }
    }

    // A process that was killed leaves a line that breaks off; somebody may have edited a unit.
    [TestCase("{\"seconds\":1,\"resu")]
    [TestCase("{\"seconds\":1}\n")]
    [TestCase("\0\0\0\n")]
    public void DamagedFilesAreMeasuredAnew(string torn)
    {
        using Setup setup = new();
        CountingTask task = new(setup.Language, parts: 3) { StopAt = ("dense", 2) };
        Assert.That(() => setup.Run([], task), Throws.InstanceOf<OperationCanceledException>());
        File.AppendAllText(Directory.GetFiles(setup.Units, "*.jsonl").Single(), torn);
        CountingTask second = new(setup.Language, parts: 3);
        Assert.That(setup.Run([], second).Single().Value("sum"), Is.EqualTo(3));
        Assert.That(second.Measured, Is.EqualTo(new[] { "dense 2" }));

        File.WriteAllText(Directory.GetFiles(setup.Units, "*.json").Single(), torn);
        CountingTask third = new(setup.Language, parts: 3);
        Assert.That(setup.Run([], third).Single().Value("sum"), Is.EqualTo(3));
        Assert.That(third.Measured, Has.Count.EqualTo(3));
    }

    [Test]
    public void ProgressTellsShareAndTimeLeft()
    {
        using Setup setup = new();
        List<EvaluationProgress> told = [];
        setup.Run([s_settings[0]], new CountingTask(setup.Language, parts: 2), told.Add);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(told[0].Left, Is.Null);
            Assert.That(told[^1], Has.Property("Share").EqualTo(1).And.Property("Left").EqualTo(TimeSpan.Zero));
            Assert.That(told.Select(item => item.Unit).Distinct(), Is.EqualTo(new[] { 0, 1 }));
            Assert.That(told.Where(item => item.Unit == 0).Select(item => item.Share), Is.Ordered);
            Assert.That(told[2..].Select(item => item.Left), Has.None.Null.And.All.GreaterThanOrEqualTo(TimeSpan.Zero));
        }
    }

    [Test]
    public void WhatCannotBeRunIsRefused()
    {
        using Setup setup = new();
        CountingTask task = new(setup.Language, parts: 1);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => setup.Run([]), Throws.ArgumentException.With.Message.Contains("none"));
            Assert.That(() => setup.Run(task: [task, task], settings: []), Throws.ArgumentException.With.Message.Contains("count, count"));
            Assert.That(() => new CountingTask(setup.Language, parts: 1, name: "a/b"), Throws.ArgumentException.With.Message.Contains("a/b"));
            Assert.That(() => new EvaluationRun([task], [], setup.Language.Directory + "/config.json"), Throws.InstanceOf<IOException>());
        }
    }

    [Test]
    public void ReportsHoldEachNumber()
    {
        using Setup setup = new();
        EvaluationReport report = new(setup.Run([new("a|b", MustafarPresets.FourBits)], new CountingTask(setup.Language, parts: 2)));
        report.Write(setup.Results);
        JsonNode json = JsonNode.Parse(File.ReadAllText(Path.Combine(setup.Results, "results.json")))!;
        using (Assert.EnterMultipleScope())
        {
            Assert.That(json["settings"]!.AsArray().Select(item => (string)item!["name"]!), Is.EqualTo(new[] { "dense", "a|b" }));
            Assert.That((int)json["settings"]![1]!["key_bits"]!, Is.EqualTo(4));
            Assert.That((double)json["results"]![1]!["metrics"]!["sum"]!, Is.EqualTo(1));
            Assert.That(json["results"]![1]!["metrics"]!["broken"], Is.Null);
            Assert.That(
                File.ReadAllText(Path.Combine(setup.Results, "results.md")),
                Does.Contain("## count\n\n| setting | sum of parts | broken |\n| --- | ---: | ---: |\n| dense | 1.0 | – |\n| a\\|b | 1.0 | – |\n"));
        }
    }

    private sealed class Setup : IDisposable
    {
        private readonly TemporaryDirectory _model = new TemporaryDirectory().WithTinyCheckpoint();
        private readonly TemporaryDirectory _otherModel = new TemporaryDirectory().WithTinyCheckpoint(config => config["rms_norm_eps"] = 1e-6);
        private readonly TemporaryDirectory _results = new();

        public Setup() => (Language, Other) = (LanguageModel.Load(_model.Path), LanguageModel.Load(_otherModel.Path));

        public LanguageModel Language { get; }

        public LanguageModel Other { get; }

        public string Results => _results.Path;

        public string Units => _results.File("units");

        public List<EvaluationUnit> Run(IEnumerable<CacheSetting> settings, params IReadOnlyList<EvaluationTask> task) =>
            [.. new EvaluationRun(task, settings, Results).Run()];

        public List<EvaluationUnit> Run(IEnumerable<CacheSetting> settings, EvaluationTask task, Action<EvaluationProgress> progress) =>
            [.. new EvaluationRun([task], settings, Results).Run(new Follower(progress))];

        public void Dispose()
        {
            Language.Dispose();
            Other.Dispose();
            _model.Dispose();
            _otherModel.Dispose();
            _results.Dispose();
        }
    }

    private sealed class Follower(Action<EvaluationProgress> follow) : IProgress<EvaluationProgress>
    {
        public void Report(EvaluationProgress value) => follow(value);
    }

    // Part i measures i; what was measured is noted.
    private sealed class CountingTask(LanguageModel language, int parts, int seed = 0, string name = "count") : EvaluationTask(name, language)
    {
        public List<string> Measured { get; } = [];

        public (string Setting, int Part)? StopAt { get; init; }

        public override IReadOnlyList<Metric> Metrics { get; } = [new("sum", "sum of parts", "F1"), new("broken", "broken", "F1")];

        public override int Parts => parts;

        public override JsonObject Inputs => new() { ["seed"] = seed };

        public override long TokensOf(int part) => 10;

        public override JsonNode MeasurePart(CacheSetting setting, int part, IProgress<double> progress, CancellationToken cancellationToken)
        {
            Measured.Add($"{setting.Name} {part}");
            progress.Report(0.5);
            return StopAt == (setting.Name, part) ? throw new OperationCanceledException() : JsonValue.Create(part);
        }

        public override TaskResult Summarize(IReadOnlyList<JsonNode> parts) => new(
            new Dictionary<string, double> { ["sum"] = parts.Sum(part => (double)part), ["broken"] = double.NaN },
            new JsonArray([.. parts.Select(part => part.DeepClone())]));
    }
}
