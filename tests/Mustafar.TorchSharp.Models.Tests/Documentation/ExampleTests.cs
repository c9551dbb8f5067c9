using Microsoft.Extensions.AI;
using Mustafar.Extensions.AI;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using Mustafar.Tests.Llama;

namespace Mustafar.Tests.Documentation;

/// <summary>The examples of the XML comments of the models and the chat client, as they show them.</summary>
[TestFixture]
internal sealed class ExampleTests
{
    private readonly TemporaryDirectory _files = new TemporaryDirectory().WithTinyCheckpoint();

    [OneTimeTearDown]
    public void DeleteFiles() => _files.Dispose();

    [TestCase("managed/Mustafar.TorchSharp.Models", nameof(LanguageModel), nameof(EvaluationRun))]
    [TestCase("managed/Mustafar.Extensions.AI", nameof(LlamaChatClient))]
    public void What_is_shown_is_run_here(string library, params string[] types) =>
        ShownCode.AssertExamplesAreRun(library, "tests/Mustafar.TorchSharp.Models.Tests/Documentation/ExampleTests.cs", types);

    [Test]
    public void Generation()
    {
        string directory = _files.Path;

        using LanguageModel language = LanguageModel.Load(directory);
        using ModelCache cache = ModelCache.Mustafar(language.Model, MustafarPresets.HalfInFourBits);
        foreach (string part in language.Generate("def main():", cache, maxTokens: 20, SamplingParameters.Greedy))
        {
            Console.Write(part);
        }

        Assert.That(cache.Length, Is.EqualTo(language.Tokenizer.Encode("def main():").Count + 19));
    }

    [Test]
    public void Evaluation()
    {
        (string directory, string results) = (_files.Path, _files.File("results"));
        string text = string.Concat(Enumerable.Range(0, 100).Select(i => $"line {i}\n"));

        using LanguageModel language = LanguageModel.Load(directory);
        EvaluationTask[] tasks = [new PerplexityTask(language, text, context: 200, prefill: 40)];
        CacheSetting[] settings = [new("4 bits", MustafarPresets.FourBits), new("half", MustafarPresets.HalfInFourBits)];
        EvaluationRun run = new(tasks, settings, results);
        new EvaluationReport([.. run.Run()]).Write(results);

        Assert.That(File.ReadAllText(Path.Combine(results, "results.md")), Does.Contain("| half |"));
    }

    [Test]
    public async Task Chat()
    {
        string directory = _files.Path;

        LlamaChatClientOptions options = new() { Cache = MustafarPresets.HalfInFourBits };
        using IChatClient client = LlamaChatClient.Load(directory, options);
        ChatResponse response = await client.GetResponseAsync("Why is the sky blue?", new ChatOptions { MaxOutputTokens = 20 });
        Console.WriteLine(response.Text);

        Assert.That(response.Usage!.OutputTokenCount, Is.EqualTo(20));
    }
}
