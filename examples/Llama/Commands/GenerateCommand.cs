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

    private readonly Option<int> _maxTokens = new("--max-tokens")
    {
        Description = "Tokens to generate at most.",
        DefaultValueFactory = _ => 256,
        HelpName = "N",
    };

    private readonly Option<double> _temperature = new("--temperature")
    {
        Description = "Divides the scores before a token is drawn; 0 takes the likeliest.",
        DefaultValueFactory = _ => 0,
        HelpName = "T",
    };

    private readonly Option<int> _topK = new("--top-k") { Description = "Draw from the K likeliest tokens; 0 from all.", HelpName = "K" };

    private readonly Option<double> _topP = new("--top-p")
    {
        Description = "Draw from the fewest of the likeliest tokens that have this probability together.",
        DefaultValueFactory = _ => 1,
        HelpName = "P",
    };

    private readonly Option<int> _seed = new("--seed") { Description = "Start of the random numbers.", HelpName = "S" };

    private readonly Option<bool> _ignoreStop = new("--ignore-eos") { Description = "Go on after a token that ends a text." };

    public GenerateCommand()
        : base("generate", "Continue a prompt, and report speed and cache size.")
    {
        Add(_prompt, _promptFile, _maxTokens, _temperature, _topK, _topP, _seed, _ignoreStop);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        SamplingOptions sampling = new()
        {
            Temperature = arguments.GetValue(_temperature),
            TopK = arguments.GetValue(_topK),
            TopP = arguments.GetValue(_topP),
            Seed = arguments.GetValue(_seed),
        };
        int maxTokens = Positive(arguments, _maxTokens);
        string prompt = Prompt(arguments);
        using ModelSession session = ModelSession.Load(settings, output);
        using ModelCache cache = session.NewCache();
        TokenGenerator generator = new(session.Model, cache);
        IncrementalDetokenizer detokenizer = new(session.Tokenizer);
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
