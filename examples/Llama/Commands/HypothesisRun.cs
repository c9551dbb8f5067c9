using System.Globalization;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Generates several continuations of one prompt and reports the best.</summary>
/// <param name="session">The model.</param>
/// <param name="settings">How to make them.</param>
/// <param name="maxTokens">Maximum number of tokens of a continuation.</param>
/// <param name="stopTokens">Tokens that end one.</param>
/// <param name="output">Receives the report.</param>
internal sealed class HypothesisRun(
    ModelSession session, HypothesisSettings settings, int maxTokens, IReadOnlySet<int> stopTokens, ConsoleOutput output)
{
    /// <summary>Continues a prompt.</summary>
    public void Run(string prompt)
    {
        List<int> promptIds = session.Tokenizer.Encode(prompt);
        using ModelCache cache = session.NewCache();
        (TextGenerator generator, SearchResult result) = output.WithProgress(
            "Generating", progress => Search(promptIds, cache, tokens => progress.Report((double)tokens / maxTokens)));
        TextResult[] best = [.. result.Hypotheses.Take(settings.Count).Select(Describe)];
        for (int i = 0; i < best.Length; i++)
        {
            output.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"--- {i + 1}: score {best[i].Score:F4}, log-probability {best[i].LogProbability:F4} of {best[i].Tokens} tokens"));
            output.WriteLine(prompt + best[i].Text);
        }

        RunReport report = RunReport.Of(session);
        MemoryReport memory = MemoryReport.Of(result.CachedTokens, result.Memory);
        double promptSeconds = generator.PrefillTime.TotalSeconds;
        output.WriteLine();
        output.WriteLine($"search    {DescribeSearch()}");
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"tokens    {generator.TokensPerSecond:F1} tokens/s, all continuations together; prompt of {promptIds.Count} {promptSeconds:F2} s"));
        output.WriteLine($"cache     {memory}");
        output.WriteLine($"sparsity  {report.DescribeSparsity()}");
        output.WriteJson(new Result(
            report,
            prompt,
            promptIds.Count,
            settings.BestOf?.Length,
            settings.Beams?.Beams,
            settings.Beams?.LengthPenalty,
            best,
            generator.TokensPerSecond,
            promptSeconds,
            memory));
    }

    private (TextGenerator Generator, SearchResult Result) Search(List<int> promptIds, ModelCache cache, Action<int> advanced)
    {
        if (settings.Beams is BeamSearchOptions options)
        {
            BeamSearch search = new(session.Model, cache);
            return (search, search.Search(promptIds, options, maxTokens, stopTokens, advanced));
        }

        BestOf bestOf = new(session.Model, cache);
        Sampler[] samplers = [.. settings.BestOf!.Select(sampling => new Sampler(sampling))];
        return (bestOf, bestOf.Generate(promptIds, samplers, maxTokens, stopTokens, advanced));
    }

    private TextResult Describe(Hypothesis hypothesis)
    {
        IncrementalDetokenizer detokenizer = new(session.Tokenizer, continuesText: true);
        string text = string.Concat(hypothesis.Tokens.SkipLast(hypothesis.IsStopped ? 1 : 0).Select(detokenizer.Append));
        return new TextResult(
            text + detokenizer.Finish(),
            hypothesis.Tokens.Count,
            hypothesis.LogProbability,
            hypothesis.Score,
            hypothesis.IsStopped ? "stop" : "length");
    }

    private string DescribeSearch() => settings.Beams is BeamSearchOptions options
        ? string.Create(CultureInfo.InvariantCulture, $"beams {options.Beams}, by log-probability / tokens^{options.LengthPenalty}")
        : $"best of {settings.BestOf!.Length}, by mean log-probability";

    private sealed record TextResult(string Text, int Tokens, double LogProbability, double Score, string FinishReason);

    private sealed record Result(
        RunReport Run,
        string Prompt,
        int PromptTokens,
        int? BestOf,
        int? Beams,
        double? LengthPenalty,
        TextResult[] Texts,
        double TokensPerSecond,
        double PromptSeconds,
        MemoryReport Cache);
}
