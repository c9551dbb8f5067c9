using System.CommandLine;
using System.Globalization;
using System.Text;
using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;
using Mustafar.Examples.Llama.Tokenizer;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Continues a prompt.</summary>
internal sealed class GenerateCommand : LlamaCommand
{
    private const string DefaultPrompt = "def fibonacci(n):\n    \"\"\"Return the first n Fibonacci numbers.\"\"\"\n";

    private readonly Option<string?> _prompt = new("--prompt") { Description = "Text to continue.", HelpName = "TEXT" };
    private readonly Option<string?> _promptFile = new("--prompt-file") { Description = "File with the text to continue.", HelpName = "FILE" };

    private readonly GenerationOptions _generation = new(maxTokens: 256);
    private readonly Option<bool> _ignoreStop = new("--ignore-eos") { Description = "Go on after a token that ends a text." };

    public GenerateCommand()
        : base("generate", "Continue a prompt, and report speed and cache size.")
    {
        Add([_prompt, _promptFile, .. _generation.All, _ignoreStop]);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        SamplingOptions sampling = _generation.Sampling(arguments);
        int maxTokens = Positive(arguments, _generation.MaxTokens);
        string prompt = Prompt(arguments);
        using ModelSession session = ModelSession.Load(settings, output);
        using ModelCache cache = session.NewCache();
        TokenGenerator generator = new(session.Model, cache);
        IncrementalDetokenizer detokenizer = new(session.Tokenizer, continuesText: true);
        List<int> promptIds = session.Tokenizer.Encode(prompt);
        IReadOnlySet<int> stopTokens = arguments.GetValue(_ignoreStop) ? new HashSet<int>() : session.StopTokens;
        StringBuilder text = new();
        bool stopped = false;
        int count = 0;

        // Evaluated before the prompt is echoed, so that a prompt that can't be used leaves no output.
        IEnumerable<int> tokens = generator.Generate(promptIds, new Sampler(sampling), maxTokens, stopTokens);
        output.Write(prompt);
        foreach (int token in tokens)
        {
            count++;
            stopped = stopTokens.Contains(token);
            Emit(stopped ? "" : detokenizer.Append(token));
        }

        Emit(detokenizer.Finish());
        RunReport run = RunReport.Of(session);
        MemoryReport memory = MemoryReport.Of(cache);
        output.WriteLine();
        output.WriteLine();
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"tokens    {count} after a prompt of {promptIds.Count}; {generator.TokensPerSecond:F1} tokens/s, ")
            + string.Create(CultureInfo.InvariantCulture, $"prompt {generator.PrefillTime.TotalSeconds:F2} s"));
        output.WriteLine($"cache     {memory}");
        output.WriteLine($"sparsity  {run.DescribeSparsity()}");
        output.WriteJson(new Result(
            run,
            prompt,
            text.ToString(),
            promptIds.Count,
            count,
            stopped ? "stop" : "length",
            generator.TokensPerSecond,
            generator.PrefillTime.TotalSeconds,
            memory));

        void Emit(string part)
        {
            text.Append(part);
            output.Write(part);
        }
    }

    private string Prompt(ParseResult arguments) => (arguments.GetValue(_prompt), arguments.GetValue(_promptFile)) switch
    {
        (null, null) => DefaultPrompt,
        (string prompt, null) => prompt,
        (null, string file) => ShippedFiles.ReadText(file),
        _ => throw new CommandException("Expected --prompt or --prompt-file, but got both."),
    };

    private sealed record Result(
        RunReport Run,
        string Prompt,
        string Text,
        int PromptTokens,
        int Tokens,
        string FinishReason,
        double TokensPerSecond,
        double PromptSeconds,
        MemoryReport Cache);
}
