using System.CommandLine;
using System.Globalization;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Prints how well each token of a text is predicted.</summary>
internal sealed class ScoreCommand : LlamaCommand
{
    private static readonly char[] s_separators = [' ', '\t', '\r', '\n', ',', '[', ']'];

    private readonly Option<string?> _file = new("--file") { Description = "Text to score.", HelpName = "FILE" };

    private readonly Option<string?> _idsFile = new("--ids-file")
    {
        Description = "Token ids to score: numbers separated by spaces, commas or line breaks, or a JSON array.",
        HelpName = "FILE",
    };

    private readonly Option<int?> _prefill = CommandOption.Number<int>(
        "--prefill",
        "Tokens read at once before decoding starts. Default: all with a dense cache, where it makes no "
            + "difference, and 1 with a compressed one, so that every prediction reads the cache as in decode.",
        "TOKENS");

    public ScoreCommand()
        : base("score", "Print the negative log likelihood of each token of a text.")
    {
        Add(_idsFile, _file, _prefill);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        (string? file, string? idsFile) = (arguments.GetValue(_file), arguments.GetValue(_idsFile));
        if ((file is null) == (idsFile is null))
        {
            throw new CommandException(file is null ? "expected --file or --ids-file." : "expected --file or --ids-file, but got both.");
        }

        List<int>? given = idsFile is null ? null : ReadIds(idsFile);
        string? text = file is null ? null : ShippedFiles.ReadText(file);
        using ModelSession session = ModelSession.Load(settings, output, withTokenizer: given is null);
        List<int> ids = given ?? session.Tokenizer.Encode(text!);
        if (ids.Count < 2)
        {
            throw new CommandException($"{file ?? idsFile}: expected at least 2 tokens, but got {ids.Count}.");
        }

        TokenIds.Check(ids, session.Model.Config);
        int prefill = arguments.GetValue(_prefill) ?? (settings.Attention == AttentionKind.Dense ? ids.Count : 1);
        if (prefill < 1 || prefill > ids.Count)
        {
            throw new CommandException($"--prefill: expected 1 to {ids.Count}, the number of tokens, but got {prefill}.");
        }

        using ModelCache cache = session.NewCache();
        double[] nll = output.WithProgress($"Scoring {ids.Count} tokens", progress =>
        {
            using DisposeScope scope = NewDisposeScope();
            Tensor scores = TeacherForcing.NegativeLogLikelihoods(
                session.Model,
                cache,
                TokenIds.ToTensor(ids, session.Model.Device),
                prefill,
                includePrompt: true,
                tokens => progress.Report((double)tokens / ids.Count));
            return scores.cpu().data<double>().ToArray();
        });
        for (int i = 0; i < nll.Length; i++)
        {
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{i + 1}\t{ids[i + 1]}\t{nll[i]:F6}"));
        }

        double mean = nll.Average();
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"mean {mean:F6} nats, perplexity {Math.Exp(mean):F4}"));
        output.WriteJson(new Result(RunReport.Of(session), prefill, ids, nll, mean, Math.Exp(mean), MemoryReport.Of(cache)));
    }

    private static List<int> ReadIds(string path)
    {
        List<int> ids = [];
        foreach (string word in ShippedFiles.ReadText(path).Split(s_separators, StringSplitOptions.RemoveEmptyEntries))
        {
            ids.Add(int.TryParse(word, NumberStyles.None, CultureInfo.InvariantCulture, out int id)
                ? id
                : throw new CommandException($"{path}: expected token ids, but got '{(word.Length > 40 ? word[..40] + "…" : word)}'."));
        }

        return ids;
    }

    private sealed record Result(RunReport Run, int Prefill, List<int> Ids, double[] Nll, double MeanNll, double Perplexity, MemoryReport Cache);
}
