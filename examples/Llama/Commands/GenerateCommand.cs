using System.CommandLine;
using System.Globalization;
using System.Text;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Continues a prompt, or several as one batch, or one several times.</summary>
internal sealed class GenerateCommand : LlamaCommand
{
    private const string DefaultPrompt = "def fibonacci(n):\n    \"\"\"Return the first n Fibonacci numbers.\"\"\"\n";

    private readonly Option<string[]> _prompts = new("--prompt")
    {
        Description = "Text to continue; if repeated, the texts are continued as one batch.",
        HelpName = "TEXT",
    };

    private readonly Option<string?> _promptFile = new("--prompt-file") { Description = "File with the text to continue; - for standard input.", HelpName = "FILE" };

    private readonly Option<string?> _load = new("--load") { Description = "Continue the text in a file that --save wrote.", HelpName = "FILE" };
    private readonly Option<string?> _save = new("--save") { Description = "Write the text and its compressed cache to a file.", HelpName = "FILE" };

    private readonly GenerationOptions _generation = new(maxTokens: 256);
    private readonly HypothesisOptions _hypotheses = new();
    private readonly Option<bool> _ignoreStop = new("--ignore-eos") { Description = "Continue after a token that ends a text." };

    private readonly CommandInput _input;

    public GenerateCommand(CommandInput input)
        : base("generate", "Continue a prompt, and report speed and cache size. Without --prompt or --prompt-file, the prompt is read from a pipe.")
    {
        _input = input;
        Add([_prompts, _promptFile, _load, _save, .. _generation.All, _ignoreStop, .. _hypotheses.All]);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        SamplingParameters sampling = _generation.Sampling(arguments, settings.Model, output);
        int maxTokens = Positive(arguments, _generation.MaxTokens);
        string[] prompts = Prompts(arguments);
        HypothesisSettings? hypotheses = _hypotheses.Read(arguments, prompts.Length, _generation, sampling);
        (string? load, string? save) = (arguments.GetValue(_load), arguments.GetValue(_save));
        if ((load ?? save) is not null && (prompts.Length > 1 || hypotheses is not null))
        {
            throw new CommandException(prompts.Length > 1
                ? $"--load and --save: expected one prompt, but got {prompts.Length}."
                : "--load and --save: expected one continuation, but --best-of and --beams make several.");
        }

        CheckFiles(settings, load, save);
        using ModelSession session = ModelSession.Load(settings, output);
        IReadOnlySet<int> stopTokens = arguments.GetValue(_ignoreStop) ? new HashSet<int>() : session.StopTokens;
        if (hypotheses is not null)
        {
            new HypothesisRun(session, hypotheses, maxTokens, stopTokens, output).Run(prompts[0]);
            return;
        }

        using ModelCache cache = session.NewCache(prompts.Length);
        SavedText? before = load is null ? null : SavedText.Load(load, session, cache);
        TokenGenerator generator = new(session.Model, cache);
        Continuation[] texts = [.. prompts.Select(prompt => new Continuation(prompt, session.Tokenizer, stopTokens, before?.Uncached))];
        Sampler[] samplers = [.. texts.Select((_, i) => new Sampler(sampling with { Seed = unchecked(sampling.Seed + (ulong)i) }))];
        if (before is not null)
        {
            samplers[0].AddPrompt(session.Tokenizer.Encode(before.Text));
        }

        // Evaluated before the prompt is echoed, so that a prompt that can't be used leaves no output.
        IEnumerable<SequenceToken> tokens = generator.Generate(
            [.. texts.Select(text => text.PromptIds)],
            samplers,
            maxTokens,
            stopTokens,
            output.Interrupted);
        if (texts is [Continuation single])
        {
            output.Write(single.Prompt);
            foreach (SequenceToken item in UntilInterrupted(tokens))
            {
                output.Write(single.Append(item.Token));
            }

            output.WriteLine(single.Finish());
        }
        else
        {
            foreach (SequenceToken item in UntilInterrupted(tokens))
            {
                texts[item.Sequence].Append(item.Token);
            }

            foreach (Continuation text in texts)
            {
                text.Finish();
                output.WriteLine($"--- {text.Tokens} tokens after a prompt of {text.PromptIds.Count}");
                output.WriteLine(text.Prompt + text.Text);
            }
        }

        // An interrupted prompt leaves nothing in the cache.
        if (save is not null && texts[0].Tokens > 0)
        {
            (Continuation text, int cached) = (texts[0], before?.CachedTokens ?? 0);
            List<int> latest = [.. text.PromptIds, .. text.Ids];
            SavedText.Save(save, session, cache, before?.Text + text.Prompt + text.Text, latest, cached + latest.Count);
        }

        Report(new Outcome(RunReport.Of(session), texts, generator, MemoryReport.Of(cache), before), output);
        output.Interrupted.ThrowIfCancellationRequested();
    }

    // What was generated so far is printed and saved.
    private static IEnumerable<SequenceToken> UntilInterrupted(IEnumerable<SequenceToken> tokens)
    {
        using IEnumerator<SequenceToken> enumerator = tokens.GetEnumerator();
        while (true)
        {
            try
            {
                if (!enumerator.MoveNext())
                {
                    yield break;
                }
            }
            catch (OperationCanceledException)
            {
                yield break;
            }

            yield return enumerator.Current;
        }
    }

    private static void Report(Outcome run, ConsoleOutput output)
    {
        (int promptTokens, int tokens) = (run.Texts.Sum(text => text.PromptIds.Count), run.Texts.Sum(text => text.Tokens));
        double promptSeconds = run.Generator.PrefillTime.TotalSeconds;
        output.WriteLine();
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"tokens    {tokens} after a prompt of {promptTokens}; {run.Generator.TokensPerSecond:F1} tokens/s, prompt {promptSeconds:F2} s"));
        if (run.Before is not null)
        {
            output.WriteLine($"restored  {run.Before.Describe(promptTokens, promptSeconds)}");
        }

        output.WriteLine($"cache     {run.Cache}");
        output.WriteLine($"sparsity  {run.Report.DescribeSparsity()}");
        TextResult[] results = [.. run.Texts.Select(text =>
            new TextResult(text.Prompt, text.Text, text.PromptIds.Count, text.Tokens, text.IsStopped ? "stop" : "length"))];
        if (results is [TextResult single])
        {
            output.WriteJson(new Result(
                run.Report,
                single.Prompt,
                single.Text,
                promptTokens,
                tokens,
                single.FinishReason,
                run.Generator.TokensPerSecond,
                promptSeconds,
                run.Before?.CachedTokens,
                run.Before?.Seconds,
                run.Cache));
        }
        else
        {
            output.WriteJson(new BatchResult(run.Report, results, tokens, run.Generator.TokensPerSecond, promptSeconds, run.Cache));
        }
    }

    private string[] Prompts(ParseResult arguments) => (arguments.GetValue(_prompts) ?? [], arguments.GetValue(_promptFile)) switch
    {
        ([], null) => [_input.ReadPiped() ?? (arguments.GetValue(_load) is null ? DefaultPrompt : "")],
        (string[] prompts, null) => prompts,
        ([], string file) => [_input.ReadText(file)],
        _ => throw new CommandException("expected --prompt or --prompt-file, but got both."),
    };

    // One of the texts as it grows.
    private sealed class Continuation(string prompt, TextTokenizer tokenizer, IReadOnlySet<int> stopTokens, IReadOnlyList<int>? before)
    {
        private readonly IncrementalDetokenizer _detokenizer = new(tokenizer, continuesText: true);
        private readonly StringBuilder _text = new();

        public string Prompt => prompt;

        // Ids of the text so far that are not cached come first; it is a continuation, so no special tokens are added.
        public List<int> PromptIds { get; } = [.. before ?? [], .. tokenizer.Encode(prompt, addSpecialTokens: before is null)];

        public string Text => _text.ToString();

        public List<int> Ids { get; } = [];

        public int Tokens => Ids.Count;

        public bool IsStopped { get; private set; }

        public string Append(int token)
        {
            Ids.Add(token);
            IsStopped = stopTokens.Contains(token);
            return Add(IsStopped ? "" : _detokenizer.Append(token));
        }

        public string Finish() => Add(_detokenizer.Finish());

        private string Add(string part)
        {
            _text.Append(part);
            return part;
        }
    }

    private sealed record Outcome(RunReport Report, Continuation[] Texts, TokenGenerator Generator, MemoryReport Cache, SavedText? Before);

    private sealed record Result(
        RunReport Run,
        string Prompt,
        string Text,
        int PromptTokens,
        int Tokens,
        string FinishReason,
        double TokensPerSecond,
        double PromptSeconds,
        int? RestoredTokens,
        double? RestoreSeconds,
        MemoryReport Cache);

    private sealed record TextResult(string Prompt, string Text, int PromptTokens, int Tokens, string FinishReason);

    private sealed record BatchResult(
        RunReport Run, TextResult[] Texts, int Tokens, double TokensPerSecond, double PromptSeconds, MemoryReport Cache);
}
