using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

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
        List<List<int>> windows = TextWindows.Of(session.Tokenizer, text, context);
        if (windows.Count == 0)
        {
            throw new CommandException($"{file}: expected a text of at least {context} tokens.");
        }

        int count = Math.Min(arguments.GetValue(_windows) ?? windows.Count, windows.Count);
        TokenIds.Check(windows[0], session.Model.Config);
        Stopwatch stopwatch = Stopwatch.StartNew();
        MemoryReport memory = null!;
        double[] nll = output.WithProgress($"Decoding {WindowsText(count)}", progress =>
        {
            List<double> all = [];
            for (int i = 0; i < count; i += batch)
            {
                int start = i;
                List<int>[] part = [.. windows.Skip(start).Take(Math.Min(batch, count - start))];
                using ModelCache cache = session.NewCache(part.Length);
                using DisposeScope scope = NewDisposeScope();
                Tensor ids = TokenIds.ToTensor(part, session.Model.Device);
                Tensor scores = TeacherForcing.NegativeLogLikelihoods(
                    session.Model,
                    cache,
                    ids,
                    prefill,
                    includePrompt: false,
                    tokens => progress.Report((start + ((double)part.Length * tokens / context)) / count));
                all.AddRange(scores.cpu().data<double>().ToArray());
                memory = MemoryReport.Of(cache);
            }

            return all.ToArray();
        });
        double mean = nll.Average();
        double[] means = [.. nll.Chunk(context - prefill).Select(window => window.Average())];
        double tokensPerSecond = nll.Length / stopwatch.Elapsed.TotalSeconds;
        RunReport run = RunReport.Of(session);
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"perplexity  {Math.Exp(mean):F4} (mean NLL {mean:F5} nats of {nll.Length} tokens in {WindowsText(count)})"));
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture, $"speed       {tokensPerSecond:F1} tokens/s, {WindowsText(Math.Min(batch, count))} per batch"));
        output.WriteLine($"cache       {memory}");
        output.WriteLine($"sparsity    {run.DescribeSparsity()}");
        output.WriteJson(new Result(run, file, context, prefill, count, nll.Length, mean, Math.Exp(mean), means, tokensPerSecond, memory));
    }

    private static string WindowsText(int count) => count == 1 ? "1 window" : string.Create(CultureInfo.InvariantCulture, $"{count} windows");

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
