using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using System.Text.Json.Nodes;
using Mustafar.Models.Evaluation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>
/// Measures perplexity by decoding. A prefix of each window of a text is the prompt; the rest is decoded token by token with the true
/// tokens, so that every prediction reads the cache as in decode.
/// </summary>
internal sealed class PerplexityCommand : LlamaCommand
{
    private readonly Option<string> _file = CommandOption.Text("--file", "Text to predict.", ShippedFiles.HeldOutText, "FILE");

    private readonly Option<int> _context = CommandOption.Number(
        "--context", "Tokens per window, including bos_token.", "TOKENS", 2048);

    private readonly Option<int> _prefill = CommandOption.Number(
        "--prefill", "How many tokens of a window are its prompt.", "TOKENS", 512);

    private readonly Option<int?> _windows = CommandOption.Number<int>("--windows", "Windows to measure; default: all.", "N");

    private readonly Option<int> _batch = CommandOption.Number("--batch", "Windows decoded as one batch.", "N", 11);

    public PerplexityCommand()
        : base("perplexity", "Measure perplexity on a text, decoding token by token through the cache.")
    {
        Add(_file, _context, _prefill, _windows, _batch);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        int context = Positive(arguments, _context);
        int prefill = Positive(arguments, _prefill);
        int batch = Positive(arguments, _batch);
        if (prefill >= context)
        {
            throw new CommandException($"--prefill: expected less than the context of {context}, but got {prefill}.");
        }

        if (arguments.GetValue(_windows) is < 1)
        {
            throw new CommandException($"--windows: expected at least 1, but got {arguments.GetValue(_windows)}.");
        }

        string file = arguments.GetRequiredValue(_file);
        string text = ShippedFiles.ReadDocuments(file);
        using ModelSession session = ModelSession.Load(settings, output);
        PerplexityTask task = ShippedFiles.OfText(file, () => new PerplexityTask(
            session.Language, text, context, prefill, arguments.GetValue(_windows), batch, comparesWithDense: false));
        CacheSetting cache = session.CacheOf(settings.Attention);
        int count = task.Windows;
        Stopwatch stopwatch = Stopwatch.StartNew();
        MemoryReport memory = null!;
        TaskResult result = output.WithProgress($"Decoding {WindowsText(count)}", progress =>
        {
            List<JsonNode> parts = [];
            for (int part = 0; part < task.Parts; part++)
            {
                (int start, int windows) = (part * batch, Math.Min(batch, count - (part * batch)));
                (JsonNode measured, int tokens, KeyValueCacheMemory occupied) = task.Measure(
                    cache, part, new PartProgress(progress, (double)start / count, (double)windows / count), CancellationToken.None);
                parts.Add(measured);
                memory = MemoryReport.Of(tokens, occupied);
            }

            return task.Summarize(parts);
        });
        (double perplexity, double mean) = (result.Metrics["perplexity"], result.Metrics["mean_nll"]);
        int predicted = (int)result.Details!["predicted_tokens"]!;
        double[] means = [.. result.Details["window_nll"]!.AsArray().Select(JsonNumber.Read)];
        double tokensPerSecond = predicted / stopwatch.Elapsed.TotalSeconds;
        RunReport run = RunReport.Of(session);
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"perplexity  {perplexity:F4} (mean NLL {mean:F5} nats of {predicted} tokens in {WindowsText(count)})"));
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture, $"speed       {tokensPerSecond:F1} tokens/s, {WindowsText(Math.Min(batch, count))} per batch"));
        output.WriteLine($"cache       {memory}");
        output.WriteLine($"sparsity    {run.DescribeSparsity()}");
        output.WriteJson(new Result(run, file, context, prefill, count, predicted, mean, perplexity, means, tokensPerSecond, memory));
    }

    private static string WindowsText(int count) => count == 1 ? "1 window" : string.Create(CultureInfo.InvariantCulture, $"{count} windows");

    // A part of the whole: its share that is done is reported as one of all.
    private sealed class PartProgress(IProgress<double> whole, double start, double size) : IProgress<double>
    {
        public void Report(double value) => whole.Report(start + (size * value));
    }

    private sealed record Result(
        RunReport Run,
        string File,
        int Context,
        int Prefill,
        int Windows,
        int Tokens,
        double MeanNll,
        double Perplexity,
        double[] WindowNll,
        double TokensPerSecond,
        MemoryReport CacheOfLastBatch);
}
