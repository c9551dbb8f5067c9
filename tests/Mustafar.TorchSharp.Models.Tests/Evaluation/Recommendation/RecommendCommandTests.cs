using System.Globalization;
using System.Text.Json.Nodes;
using Mustafar.Examples.Llama.Commands;
using Mustafar.Models.Evaluation;
using Mustafar.Tests.Llama;

namespace Mustafar.Tests.Evaluation.Recommendation;

[TestFixture]
public sealed class RecommendCommandTests
{
    private readonly TemporaryDirectory _directory = new TemporaryDirectory().WithTinyCheckpoint();

    private string TextFile => _directory.File("text.txt");

    private string Candidates => _directory.File("candidates.json");

    [OneTimeSetUp]
    public void WriteFiles()
    {
        File.WriteAllText(
            TextFile, string.Concat(Enumerable.Range(0, 200).Select(i => string.Create(CultureInfo.InvariantCulture, $"line {i} of text\n"))));
        File.WriteAllText(Candidates, """{ "a": "FourBits", "b": "HalfInFourBits" }""");
    }

    [OneTimeTearDown]
    public void Remove() => _directory.Dispose();

    [Test]
    public void TheSettingThatIsWrittenIsReadByAllCommands()
    {
        string results = _directory.File("results"), file = Path.Combine(results, CacheRecommendation.SettingFile);
        (int code, string output, string error) = Recommend("--output", results, "--bytes", "0.25", "--local-window", "40");
        Assert.That(code, Is.Zero, error);
        CacheSetting setting = CacheSettingReader.Load(file).Single();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(output, Does.Contain("| recommended |").And.Contain("| all layers alike |").And.Contain("## Layers").And.Contain("--cache-settings"));
            Assert.That(File.ReadAllText(Path.Combine(results, "recommendation.md")), Does.Contain("## Keys: loss in each layer"));
            Assert.That(JsonNode.Parse(File.ReadAllText(Path.Combine(results, "recommendation.json")))!["layers"]!.AsArray(), Has.Count.EqualTo(2));
            Assert.That(File.ReadAllBytes(Path.Combine(results, "recommendation.png")).AsSpan(1, 3).SequenceEqual("PNG"u8));
            Assert.That(error, Does.Contain("[1/9] dense").And.Contain("layer 1 values, 32 of 64 in 4 bits"));
            Assert.That(setting.Layers, Has.Count.EqualTo(2));
            Assert.That(setting.Options!.LocalWindow, Is.EqualTo(40));
        }

        (code, output, error) = Run("evaluate", "--output", _directory.File("evaluated"), "--file", TextFile, "--context", "128", "--prefill", "64", "--windows", "1",
            "--setting", "FourBits", "--cache-settings", file);
        Assert.That(code, Is.Zero, error);
        Assert.That(output, Does.Contain("| recommended |").And.Contain("| FourBits |"));

        foreach (string[] command in (string[][])
        [
            ["generate", "--prompt", "some text", "--max-tokens", "3"], ["recall", "--file", TextFile, "--contexts", "1", "--context", "400"],
            ["perplexity", "--file", TextFile, "--context", "128", "--prefill", "64", "--windows", "1"],
        ])
        {
            (code, output, error) = Run([.. command, "--cache-settings", file, "--json"]);
            Assert.That(code, Is.Zero, error);
            JsonNode run = JsonNode.Parse(output)!["run"]!;
            Assert.That(run["layers"]!.AsArray(), Has.Count.EqualTo(2), command[0]);
            Assert.That((int)run["local_window"]!, Is.EqualTo(40), command[0]);
        }

        (code, output, error) = Run("generate", "--prompt", "some text", "--max-tokens", "3", "--cache-settings", file);
        Assert.That(output, Does.Contain("2 layers with separate settings"), error);
    }

    [Test]
    public void AnInterruptedSearchGoesOn()
    {
        using CancellationTokenSource interrupt = new();
        string[] args = ["--output", _directory.File("stopped"), "--perplexity", "1.01"];
        (int code, _, string error) = Recommend(interrupt, args);
        Assert.That(code, Is.EqualTo(130), error);
        (code, _, error) = Recommend(args);
        Assert.That(code, Is.Zero, error);
        Assert.That(error, Does.Not.Contain("[1/9]").And.Contain("[9/9]"));
    }

    [TestCase("--bytes or --perplexity, but got neither")]
    [TestCase("--bytes or --perplexity, but got both", "--bytes", "0.3", "--perplexity", "1.1")]
    [TestCase("--bytes: ", "--bytes", "-1")]
    [TestCase("--bytes: Expected a budget of at least 0.203", "--bytes", "0.01")]
    [TestCase("--perplexity: ", "--perplexity", "0.99")]
    [TestCase("--step", "--bytes", "0.3", "--step", "0")]
    [TestCase("--prefill", "--bytes", "0.3", "--context", "64")]
    [TestCase("'a' has one for each", "--bytes", "0.3", "--candidates", "{layers}")]
    [TestCase("no-such.json", "--bytes", "0.3", "--candidates", "no-such.json")]
    [TestCase("no-such.txt", "--bytes", "0.3", "--check-file", "no-such.txt")]
    [TestCase("at least 4000 tokens", "--bytes", "0.3", "--context", "4000")]
    public void WhatIsWrongIsTold(string words, params string[] args)
    {
        File.WriteAllText(_directory.File("layers.json"), """{ "a": { "layers": ["FourBits", "EightBits"] } }""");
        (int code, _, string error) = Recommend(["--output", _directory.File("wrong"), .. args.Select(arg => arg == "{layers}" ? _directory.File("layers.json") : arg)]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Not.Zero);
            Assert.That(error.Split('\n')[^2], Does.StartWith("error: ").And.Contain(words));
        }
    }

    [TestCase("""{ "a": "FourBits", "b": "EightBits" }""", "one setting, but there are 2: a, b")]
    [TestCase("""{ "a": { "layers": ["FourBits", "EightBits", "FourBits"] } }""", "2 layers")]
    [TestCase("""{ "a": { "bits": 4 } }""", "'bits'")]
    public void AFileOfCacheSettingsThatDoesNotFitIsRefused(string json, string words)
    {
        File.WriteAllText(_directory.File("other.json"), json);
        (int code, _, string error) = Run("generate", "--prompt", "a", "--max-tokens", "1", "--cache-settings", _directory.File("other.json"));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Not.Zero);
            Assert.That(error, Does.StartWith("error: ").And.Contain(words));
        }
    }

    private (int Code, string Output, string Error) Recommend(params string[] args) => Recommend(null, args);

    private (int Code, string Output, string Error) Recommend(CancellationTokenSource? interrupt, string[] args) => Run(
        interrupt,
        [
            "recommend", "--file", TextFile, "--prefill", "64", "--windows", "2", "--check-windows", "1",
            .. args.Contains("--context") ? [] : (string[])["--context", "128"], .. args.Contains("--candidates") ? [] : (string[])["--candidates", Candidates], .. args,
        ]);

    private (int Code, string Output, string Error) Run(params string[] args) => Run(null, args);

    private (int Code, string Output, string Error) Run(CancellationTokenSource? interrupt, string[] args)
    {
        using StringWriter output = new() { NewLine = "\n" };
        using Messages error = new(interrupt) { NewLine = "\n" };
        int code = LlamaProgram.Run(
            [args[0], "--model", _directory.Path, .. args[1..]], new StringReader(""), output, error, showProgress: false,
            cancellationToken: interrupt?.Token ?? CancellationToken.None);
        return (code, output.ToString(), error.ToString());
    }

    // Ctrl-C when the third measurement is told to be finished.
    private sealed class Messages(CancellationTokenSource? interrupt) : StringWriter
    {
        public override void WriteLine(string? value)
        {
            base.WriteLine(value);
            if (value?.StartsWith("[3/", StringComparison.Ordinal) == true)
            {
                interrupt?.Cancel();
            }
        }
    }
}
