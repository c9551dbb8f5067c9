using System.CommandLine;
using System.Globalization;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Runs one prompt with a dense and with a compressed cache.</summary>
internal sealed class CompareCommand : LlamaCommand
{
    private const int TokensOfShippedText = 3900;
    private const int WarmUpPrompt = 256, WarmUpTokens = 64;

    private readonly Option<string?> _promptFile = new("--prompt-file")
    {
        Description = $"File with the text to continue; - for standard input. Default: the first {TokensOfShippedText} tokens of the shipped text, continued at temperature 0.7 and top-p 0.9 unless options say otherwise.",
        HelpName = "FILE",
    };

    private readonly GenerationOptions _generation = new(maxTokens: 128);

    private readonly CommandInput _input;

    public CompareCommand(CommandInput input)
        : base("compare", "Continue one prompt with a dense and with a compressed cache: speed, size, text and divergence.")
    {
        _input = input;
        Add([_promptFile, .. _generation.All]);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        SamplingParameters sampling = _generation.Sampling(arguments, settings.Model, output);
        int maxTokens = Positive(arguments, _generation.MaxTokens);
        string? file = arguments.GetValue(_promptFile);
        if (file is null && _generation.GivenSampling(arguments).Count == 0)
        {
            // The likeliest tokens of a model as small as the shipped one soon repeat themselves.
            sampling = sampling with { Temperature = 0.7, TopP = 0.9 };
        }

        string text = file is null ? ShippedFiles.ReadDocuments(ShippedFiles.HeldOutText) : _input.ReadText(file);
        using ModelSession session = ModelSession.Load(settings with { Attention = AttentionKind.Mustafar }, output);
        List<int> prompt = session.Tokenizer.Encode(text);
        if (file is null)
        {
            prompt = prompt[..Math.Min(prompt.Count, TokensOfShippedText)];
        }

        TokenIds.Check(prompt, session.Model.Config);
        WarmUp(session, prompt, output);
        (Side dense, List<int> denseTokens) = Generate(session, AttentionKind.Dense, prompt, sampling, maxTokens, output);
        (Side mustafar, List<int> mustafarTokens) = Generate(session, AttentionKind.Mustafar, prompt, sampling, maxTokens, output);
        int same = denseTokens.Zip(mustafarTokens).TakeWhile(pair => pair.First == pair.Second).Count();
        (double? divergence, double? agreement) = Diverge(session, prompt, denseTokens, output);
        RunReport run = RunReport.Of(session, AttentionKind.Mustafar);
        Print(dense);
        Print(mustafar);
        output.WriteLine(divergence is null
            ? "KL divergence  not measured: fewer than two tokens were generated"
            : string.Create(
                CultureInfo.InvariantCulture,
                $"KL divergence  {divergence:F6} nats per token, mean of {denseTokens.Count - 1}; same likeliest token at {agreement:P1}"));
        output.WriteLine($"same text      first {same} tokens of {denseTokens.Count}");
        output.WriteLine($"sparsity       {run.DescribeSparsity()}");
        output.WriteJson(new Result(run, prompt.Count, dense, mustafar, divergence, agreement, same));

        void Print(Side side)
        {
            output.WriteLine($"--- {side.Attention}");
            output.WriteLine(side.Text);
            output.WriteLine(string.Create(
                CultureInfo.InvariantCulture, $"--- {side.TokensPerSecond:F1} tokens/s, prompt {side.PromptSeconds:F2} s"));
            output.WriteLine($"--- cache {side.Cache}");
            output.WriteLine();
        }
    }

    // The runtime compiles what either side uses while it first runs, which would be part of a short measurement.
    private static void WarmUp(ModelSession session, List<int> prompt, ConsoleOutput output) => output.WithProgress("Warming up", progress =>
    {
        List<int> start = prompt[..Math.Min(prompt.Count, WarmUpPrompt)];
        int most = Math.Clamp(session.Model.Config.MaxPositions - start.Count, 0, WarmUpTokens), done = 0;
        foreach (AttentionKind attention in (AttentionKind[])[AttentionKind.Dense, AttentionKind.Mustafar])
        {
            using ModelCache cache = session.NewCache(attention);
            foreach (int _ in new TokenGenerator(session.Model, cache).Generate(start, new Sampler(SamplingParameters.Greedy), most, new HashSet<int>()))
            {
                progress.Report(++done / (2.0 * WarmUpTokens));
            }
        }

        return true;
    });

    private static (Side Side, List<int> Tokens) Generate(
        ModelSession session, AttentionKind attention, List<int> prompt, SamplingParameters sampling, int maxTokens, ConsoleOutput output)
    {
        string name = attention == AttentionKind.Dense ? "dense" : "mustafar";
        using ModelCache cache = session.NewCache(attention);
        TokenGenerator generator = new(session.Model, cache);
        List<int> tokens = output.WithProgress($"Generating, {name}", progress =>
        {
            List<int> generated = [];
            Sampler sampler = new(sampling);
            foreach (int token in generator.Generate(prompt, sampler, maxTokens, session.StopTokens))
            {
                generated.Add(token);
                progress.Report((double)generated.Count / maxTokens);
            }

            return generated;
        });
        Side side = new(
            name,
            session.Tokenizer.Decode(tokens),
            tokens.Count,
            generator.TokensPerSecond,
            generator.PrefillTime.TotalSeconds,
            MemoryReport.Of(cache));
        return (side, tokens);
    }

    // Both caches follow the dense continuation. Its first token is predicted from the prompt, which is dense in both, so that
    // prediction is left out of the mean.
    private static (double? Divergence, double? Agreement) Diverge(
        ModelSession session, List<int> prompt, List<int> continuation, ConsoleOutput output)
    {
        if (continuation.Count < 2)
        {
            return (null, null);
        }

        return output.WithProgress("Measuring divergence", progress =>
        {
            using ModelCache dense = session.NewCache(AttentionKind.Dense);
            using ModelCache mustafar = session.NewCache(AttentionKind.Mustafar);
            using IDisposable mode = inference_mode();
            double sum = 0;
            int agreed = 0;
            for (int i = 0; i < continuation.Count; i++)
            {
                using DisposeScope scope = NewDisposeScope();
                Tensor ids = TokenIds.ToTensor(i == 0 ? prompt : [continuation[i - 1]], session.Model.Device);
                Tensor expected = session.Model.NextTokenLogits(ids, dense);
                Tensor actual = session.Model.NextTokenLogits(ids, mustafar);
                progress.Report((i + 1.0) / continuation.Count);
                if (i > 0)
                {
                    sum += TeacherForcing.Divergence(expected, actual).item<double>();
                    agreed += expected.argmax(-1).item<long>() == actual.argmax(-1).item<long>() ? 1 : 0;
                }
            }

            int steps = continuation.Count - 1;
            return ((double?)sum / steps, (double?)agreed / steps);
        });
    }

    private sealed record Side(string Attention, string Text, int Tokens, double TokensPerSecond, double PromptSeconds, MemoryReport Cache);

    private sealed record Result(
        RunReport Run, int PromptTokens, Side Dense, Side Mustafar, double? MeanKlDivergence, double? SameLikeliestToken, int SameFirstTokens);
}
