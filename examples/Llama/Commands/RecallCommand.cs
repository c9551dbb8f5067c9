using System.CommandLine;
using System.Globalization;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Measures how often a note in a long context is recalled digit by digit.</summary>
internal sealed class RecallCommand : LlamaCommand
{
    // A space, and six digits of one token each at worst.
    private const int AnswerTokens = 7;

    private readonly Option<string> _file = CommandOption.Text("--file", "Code to hide the notes in.", ShippedFiles.HeldOutText, "FILE");

    private readonly Option<int> _contexts = CommandOption.Number("--contexts", "Contexts to ask about.", "N", 100);

    private readonly Option<int> _context = CommandOption.Number("--context", "Tokens of a context.", "TOKENS", 2048);

    private readonly Option<int> _seed = CommandOption.Number("--seed", "Start of the random numbers that draw the contexts.", "S", 0);

    private readonly Option<int> _batch = CommandOption.Number("--batch", "Contexts that are decoded side by side.", "N", 10);

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
        List<int> haystack = session.Tokenizer.Encode(text, addSpecialTokens: false);
        Random random = new(seed);
        RecallTask[] tasks = [.. Enumerable.Range(0, count).Select(_ => RecallTask.Make(session.Tokenizer, haystack, context, random))];
        foreach (RecallTask task in tasks)
        {
            TokenIds.Check([.. task.Context, .. task.Question, .. new int[AnswerTokens]], session.Model.Config);
        }

        List<string> answers = output.WithProgress($"Asking about {count} contexts", progress =>
        {
            List<string> all = [];
            foreach (RecallTask[] part in tasks.Chunk(batch))
            {
                all.AddRange(Answer(session, part));
                progress.Report((double)all.Count / count);
            }

            return all;
        });
        int recalled = tasks.Zip(answers).Count(pair => pair.First.IsAnsweredBy(pair.Second));
        double share = (double)recalled / count;
        double standardError = Math.Sqrt(share * (1 - share) / count);
        RunReport run = RunReport.Of(session);
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"recall    {recalled} of {count} ({share:P1}, standard error {standardError:P1}), contexts of {context} tokens, seed {seed}"));
        output.WriteLine($"sparsity  {run.DescribeSparsity()}");
        output.WriteJson(new Result(
            run, file, count, context, seed, recalled, share, standardError, [.. tasks.Zip(answers, (task, answer) => new Asked(task.Answer, answer))]));
    }

    // The contexts are the prompts; the questions, of different lengths, and the answers are decoded over the cached contexts.
    private static List<string> Answer(ModelSession session, RecallTask[] tasks)
    {
        using IDisposable mode = inference_mode();
        using ModelCache cache = session.NewCache(tasks.Length);
        Prefill(session, cache, tasks);
        int[] counts = [.. tasks.Select(task => task.Question.Count)];
        IReadOnlyList<int>[] inputs = [.. tasks.Select(task => task.Question)];
        List<int>[] answers = [.. tasks.Select(_ => new List<int>())];
        for (int step = 0; step < AnswerTokens; step++)
        {
            using DisposeScope scope = NewDisposeScope();
            Tensor ids = TokenIds.ToPaddedTensor(inputs, session.Model.Device);
            Tensor logits = session.Model.NextTokenLogits(ids, cache, step == 0 ? counts : default);
            long[] likeliest = TokenIds.ExcludeUnused(logits, session.Model.Config).argmax(-1).cpu().data<long>().ToArray();
            for (int i = 0; i < tasks.Length; i++)
            {
                answers[i].Add((int)likeliest[i]);
                inputs[i] = [(int)likeliest[i]];
            }
        }

        return [.. answers.Select(answer => session.Tokenizer.Decode(answer))];
    }

    private static void Prefill(ModelSession session, ModelCache cache, RecallTask[] tasks)
    {
        using DisposeScope scope = NewDisposeScope();
        session.Model.Hidden(TokenIds.ToTensor([.. tasks.Select(task => task.Context)], session.Model.Device), cache);
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
