using System.Globalization;
using System.Text.Json.Nodes;
using Mustafar.Examples.Llama.Commands;
using Mustafar.Tests.Llama;

namespace Mustafar.Tests.Evaluation;

[TestFixture]
public sealed class EvaluateCommandTests
{
    private readonly TemporaryDirectory _directory = new TemporaryDirectory().WithTinyCheckpoint();

    private string TextFile => _directory.File("text.txt");

    [OneTimeSetUp]
    public void WriteText() => File.WriteAllText(
        TextFile, string.Concat(Enumerable.Range(0, 300).Select(i => string.Create(CultureInfo.InvariantCulture, $"line {i} of text\n"))));

    [OneTimeTearDown]
    public void Remove() => _directory.Dispose();

    [Test]
    public void ResultsArePrintedWrittenDrawnAndTakenAgain()
    {
        string results = _directory.File("results");
        File.WriteAllText(_directory.File("settings.json"), """{ "half": "HalfInFourBits" }""");
        string[] args =
        [
            "--output", results, "--settings", _directory.File("settings.json"), "--setting", "64: key_sparsity=0, value_sparsity=0.5",
            "--tasks", "perplexity,recall,needle,ruler", "--context", "256", "--prefill", "64", "--windows", "3", "--batch", "2",
            "--lengths", "300,400", "--depths", "2", "--samples", "1",
        ];
        (int code, string output, string error) = Run(args);
        Assert.That(code, Is.Zero, error);
        JsonNode json = JsonNode.Parse(File.ReadAllText(Path.Combine(results, "results.json")))!;
        using (Assert.EnterMultipleScope())
        {
            Assert.That(output, Does.Contain("## perplexity").And.Contain("## needle").And.Contain("| half |").And.Contain("| 64 |"));
            Assert.That(output, Does.Contain(File.ReadAllText(Path.Combine(results, "results.md")).TrimEnd('\n')));
            Assert.That(error, Does.Contain("[1/18] perplexity, dense: perplexity ").And.Contain(" left)").And.Contain("[18/18]"));
            Assert.That(json["results"]!.AsArray(), Has.Count.EqualTo(18));
            Assert.That(json["tasks"]!.AsArray().Select(task => (string)task!["name"]!), Is.EqualTo(
                new[] { "perplexity", "recall", "needle", "ruler-multikey", "ruler-multivalue", "ruler-variables" }));
            foreach (string picture in (string[])["quality-bytes.png", "needle-dense.png", "needle-half.png", "needle-64.png"])
            {
                Assert.That(File.ReadAllBytes(Path.Combine(results, picture)).AsSpan(1, 3).SequenceEqual("PNG"u8), picture);
            }
        }

        (code, string again, error) = Run([.. args, "--json"]);
        Assert.That(code, Is.Zero, error);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(error.Split('\n').Count(line => line.EndsWith("(from an earlier run)", StringComparison.Ordinal)), Is.EqualTo(18));
            Assert.That(JsonNode.DeepEquals(JsonNode.Parse(again), json));
        }
    }

    [Test]
    public void TheOptionsOfTheCacheAreASettingWithoutOthers()
    {
        string results = _directory.File("one");
        (int code, string output, string error) = Run(
            "--output", results, "--context", "128", "--prefill", "64", "--windows", "1", "--key-bits", "8", "--key-sparsity", "0",
            "--eviction", "snapkv", "--capacity", "64");
        Assert.That(code, Is.Zero, error);
        JsonNode setting = JsonNode.Parse(File.ReadAllText(Path.Combine(results, "results.json")))!["settings"]![1]!;
        using (Assert.EnterMultipleScope())
        {
            Assert.That(output, Does.Contain("| mustafar |"));
            Assert.That((int)setting["key_bits"]!, Is.EqualTo(8));
            Assert.That((double)setting["key_sparsity"]!, Is.Zero);
            Assert.That(((string)setting["eviction"]!, (int)setting["capacity"]!), Is.EqualTo(("snapkv", 64)));
        }
    }

    [Test]
    public void AnInterruptedRunKeepsWhatIsFinished()
    {
        string results = _directory.File("stopped");
        string[] args = ["--output", results, "--setting", "FourBits", "--context", "128", "--prefill", "64", "--windows", "2", "--batch", "1"];
        using CancellationTokenSource interrupt = new();
        (int code, _, string error) = Run(args, interrupt);
        Assert.That(code, Is.EqualTo(130), error);
        Assert.That(error, Does.Contain("interrupted"));
        (code, _, error) = Run(args);
        Assert.That(code, Is.Zero, error);
        Assert.That(error.Split('\n').Count(line => line.EndsWith("(from an earlier run)", StringComparison.Ordinal)), Is.EqualTo(1));
    }

    [TestCase(1)]
    [TestCase(3, "--batch", "3")]
    public void LongPromptsAreAnsweredOneAtATimeUnlessABatchIsGiven(int batch, params string[] args)
    {
        using TemporaryDirectory place = new();
        File.WriteAllText(place.File("data.json"), """
            {"_id":"1","domain":"d","sub_domain":"s","difficulty":"easy","length":"short","question":"q","choice_A":"a","choice_B":"b","choice_C":"c","choice_D":"d","answer":"A","context":"text"}
            """);
        (int code, _, string error) = Run(
            ["--output", place.File("results"), "--tasks", "longbench-v2", "--longbench-v2", place.File("data.json"), .. args]);
        Assert.That(code, Is.Zero, error);
        JsonNode json = JsonNode.Parse(File.ReadAllText(Path.Combine(place.File("results"), "results.json")))!;
        Assert.That((int)json["tasks"]![0]!["inputs"]!["batch"]!, Is.EqualTo(batch));
    }

    [TestCase("--output", "--windows", "1")]
    [TestCase("--tasks", "--tasks", "perplexity,speed")]
    [TestCase("--prefill", "--context", "64", "--prefill", "64")]
    [TestCase("--windows", "--windows", "0")]
    [TestCase("--lengths", "--tasks", "needle", "--lengths", "100,many")]
    [TestCase("--longbench", "--tasks", "longbench")]
    [TestCase("--longbench-v2", "--tasks", "longbench-v2")]
    [TestCase("no-such.json", "--tasks", "longbench-v2", "--longbench-v2", "no-such.json")]
    [TestCase("--eviction and --capacity together, but got --capacity alone", "--capacity", "64")]
    [TestCase("--eviction and --capacity together, but got --eviction alone", "--eviction", "h2o")]
    [TestCase("--capacity", "--eviction", "snapkv", "--capacity", "20")]
    [TestCase("--setting: setting 'a'", "--setting", "a: key_bits=3")]
    [TestCase("'FourBits'", "--setting", "FourBits", "--setting", "FourBits")]
    [TestCase("text.txt: Expected a text of at least 2000 tokens", "--context", "2000", "--prefill", "64", "--file", "{short}")]
    [TestCase("dataset2prompt.json", "--tasks", "longbench", "--longbench", "{model}")]
    [TestCase("no-such.json", "--settings", "no-such.json")]
    public void WhatIsWrongIsTold(string word, params string[] args)
    {
        using TemporaryDirectory place = new();
        File.WriteAllText(place.File("text.txt"), "short\n");
        string[] words = [.. args.Select(arg => arg switch { "{short}" => place.File("text.txt"), "{model}" => _directory.Path, _ => arg })];
        (int code, _, string error) = Run(word == "--output" ? words : ["--output", place.File("results"), .. words]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Not.Zero);
            Assert.That(error, Does.StartWith("error: ").And.Contain(word));
        }
    }

    private (int Code, string Output, string Error) Run(params string[] args) => Run(args, interrupt: null);

    private (int Code, string Output, string Error) Run(string[] args, CancellationTokenSource? interrupt)
    {
        using StringWriter output = new() { NewLine = "\n" };
        using Messages error = new(interrupt) { NewLine = "\n" };
        string[] file = args.Contains("--file") ? [] : ["--file", TextFile];
        int code = LlamaProgram.Run(
            ["evaluate", "--model", _directory.Path, .. file, .. args], new StringReader(""), output, error, showProgress: false,
            cancellationToken: interrupt?.Token ?? CancellationToken.None);
        return (code, output.ToString(), error.ToString());
    }

    // Ctrl-C when the first unit is told to be finished.
    private sealed class Messages(CancellationTokenSource? interrupt) : StringWriter
    {
        public override void WriteLine(string? value)
        {
            base.WriteLine(value);
            interrupt?.Cancel();
        }
    }
}
