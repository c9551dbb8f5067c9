using System.CommandLine;
using System.Globalization;
using System.Text.Json.Nodes;
using Mustafar.Models.Evaluation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Measures how often every digit of a note in a long context is recalled.</summary>
internal sealed class RecallCommand : LlamaCommand
{
    private readonly Option<string> _file = CommandOption.Text("--file", "Text to hide the notes in.", ShippedFiles.HeldOutText, "FILE");

    private readonly Option<int> _contexts = CommandOption.Number("--contexts", "Number of contexts.", "N", 100);

    private readonly Option<int> _context = CommandOption.Number("--context", "Tokens per context.", "TOKENS", 2048);

    private readonly Option<int> _seed = CommandOption.Number("--seed", "Random seed of the contexts.", "S", 0);

    private readonly Option<int> _batch = CommandOption.Number("--batch", "Contexts decoded as one batch.", "N", 10);

    public RecallCommand()
        : base("recall", "Measure how often a note in a long context is recalled.")
    {
        Add(_file, _contexts, _context, _seed, _batch);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        int count = Positive(arguments, _contexts);
        int context = Positive(arguments, _context);
        int batch = Positive(arguments, _batch);
        int seed = arguments.GetValue(_seed);
        string file = arguments.GetRequiredValue(_file);
        string text = ShippedFiles.ReadDocuments(file);
        using ModelSession session = ModelSession.Load(settings, output);
        RecallTask task = ShippedFiles.OfText(file, () => new RecallTask(session.Language, text, count, context, seed, batch));
        CacheSetting cache = settings.Attention == AttentionKind.Mustafar ? settings.Cache : CacheSetting.Dense;
        TaskResult result = output.WithProgress($"Asking about {count} contexts", progress =>
        {
            List<JsonNode> parts = [];
            while (parts.Count < task.Parts)
            {
                parts.Add(task.MeasurePart(cache, parts.Count, new Progress(progress, parts.Count, task.Parts), output.Interrupted));
            }

            return task.Summarize(parts);
        });
        Asked[] answers =
        [
            .. result.Details!["answers"]!.AsArray().Select(answer => new Asked((string)answer!["expected"]![0]!, (string)answer["got"]!)),
        ];
        (double share, double standardError) = (result.Metrics["score"], result.Metrics["standard_error"]);
        int recalled = (int)Math.Round(share * count);
        RunReport run = RunReport.Of(session);
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"recall    {recalled} of {count} ({share:P1}, standard error {standardError:P1}), contexts of {context} tokens, seed {seed}"));
        output.WriteLine($"sparsity  {run.DescribeSparsity()}");
        output.WriteJson(new Result(run, file, count, context, seed, recalled, share, standardError, answers));
    }

    private sealed class Progress(IProgress<double> whole, int part, int parts) : IProgress<double>
    {
        public void Report(double value) => whole.Report((part + value) / parts);
    }

    private sealed record Asked(string Expected, string Got);

    private sealed record Result(
        RunReport Run,
        string File,
        int Contexts,
        int Context,
        int Seed,
        int Recalled,
        double Recall,
        double StandardError,
        Asked[] Answers);
}
