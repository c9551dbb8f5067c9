using System.CommandLine;
using System.Globalization;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Finds the cache setting with the least loss, or the fewest bytes, choosing formats layer by layer.</summary>
internal sealed class RecommendCommand : LlamaCommand
{
    private readonly Option<string> _output = new("--output")
    {
        Description = $"Directory for the measurements and the recommendation; pass its {CacheRecommendation.SettingFile} to --cache-settings. A second run resumes from what is there.",
        HelpName = "DIR",
        Required = true,
    };

    private readonly Option<double?> _bytes = CommandOption.Number<double>(
        "--bytes", "Memory target: at most this many bytes of compressed tokens, relative to dense fp16, with the least loss.", "RATIO");

    private readonly Option<double?> _perplexity = CommandOption.Number<double>(
        "--perplexity", "Quality target: at most this perplexity, relative to the dense cache, such as 1.01, with the fewest bytes.", "RATIO");

    private readonly Option<string> _file = CommandOption.Text(
        "--file", "Text to measure on, similar to the model's use: the first half for the search, the second for the check.", ShippedFiles.HeldOutText, "FILE");

    private readonly Option<string?> _checkFile = new("--check-file")
    {
        Description = "Another text for the check; then all of --file is used for the search.",
        HelpName = "FILE",
    };

    private readonly Option<int> _context = CommandOption.Number("--context", "Tokens per window of the text.", "TOKENS", 2048);

    private readonly Option<int> _prefill = CommandOption.Number("--prefill", "How many tokens of a window are its prompt.", "TOKENS", 512);

    private readonly Option<int> _windows = CommandOption.Number(
        "--windows", "Windows for the search, decoded as one batch; more take longer and are more accurate.", "N", 4);

    private readonly Option<int?> _checkWindows = CommandOption.Number<int>("--check-windows", "Windows for the check; default: all.", "N");

    private readonly Option<int> _batch = CommandOption.Number("--batch", "Windows decoded as one batch in the check.", "N", 11);

    private readonly Option<int> _step = CommandOption.Number(
        "--step", "Tokens decoded at once in the search, 1 to 8; the check decodes them one by one.", "N", 8);

    private readonly Option<string?> _candidates = new("--candidates")
    {
        Description = "JSON file of settings, as for evaluate, whose key and value formats are tried separately in each layer; "
            + "default: 8 and 4 bits with several numbers of channels.",
        HelpName = "FILE",
    };

    public RecommendCommand()
        : base("recommend", "Find by measurement the cache setting, layer by layer, that meets a memory or a quality target.")
    {
        Add(_output, _bytes, _perplexity, _file, _checkFile, _context, _prefill, _windows, _checkWindows, _batch, _step, _candidates);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        string directory = arguments.GetRequiredValue(_output);
        RecommendationBudget budget = BudgetOf(arguments);
        foreach (Option<int> option in (Option<int>[])[_context, _prefill, _windows, _batch, _step])
        {
            Positive(arguments, option);
        }

        if (arguments.GetValue(_checkWindows) is < 1)
        {
            throw new CommandException($"{_checkWindows.Name}: expected at least 1, but got {arguments.GetValue(_checkWindows)}.");
        }

        if (arguments.GetValue(_prefill) >= arguments.GetValue(_context))
        {
            throw new CommandException($"{_prefill.Name}: expected less than the context of {arguments.GetValue(_context)}, but got {arguments.GetValue(_prefill)}.");
        }

        MustafarOptions[]? candidates = arguments.GetValue(_candidates) is string file ? [.. Candidates(file, settings.Options)] : null;
        string config = Path.Combine(settings.Model, "config.json");
        LlamaConfig model = LlamaConfig.Load(config);
        foreach (MustafarOptions options in candidates ?? [settings.Options])
        {
            // Checked before the weights are loaded, which may take minutes.
            model.CheckCompressible(options, config);
        }

        using ModelSession session = ModelSession.Load(settings with { Attention = AttentionKind.Dense }, output);
        (PerplexityTask search, PerplexityTask check) = Tasks(arguments, session.Language);
        CacheRecommender recommender = new(search, check, directory, settings.Options, candidates);
        CacheRecommendation recommendation = Recommend(recommender, budget, output);
        recommendation.Write(directory);
        foreach (string problem in RecommendationChart.Write(recommendation, directory))
        {
            output.Message($"warning: {problem}");
        }

        output.WriteLine(recommendation.ToMarkdown().TrimEnd('\n'));
        output.WriteLine();
        output.WriteLine($"use it with --cache-settings {Path.Combine(directory, CacheRecommendation.SettingFile)}");
        output.WriteJson(recommendation.ToJson());
    }

    // A line for each measurement, and one progress bar over all runs.
    private static CacheRecommendation Recommend(CacheRecommender recommender, RecommendationBudget budget, ConsoleOutput output)
    {
        (CacheSetting, EvaluationTask)? told = null;
        try
        {
            return output.WithProgress("Measuring", bar => recommender.Recommend(
                budget,
                new EvaluationFollower(progress =>
                {
                    bar.Report((progress.Unit + progress.Share) / progress.Units);
                    if (progress.Share == 1 && told != (progress.Setting, progress.Task))
                    {
                        told = (progress.Setting, progress.Task);
                        string left = progress.Left is TimeSpan time && time > TimeSpan.Zero ? $"; about {EvaluationFollower.Time(time)} left" : "";
                        output.Message(string.Create(
                            CultureInfo.InvariantCulture, $"[{progress.Unit + 1}/{progress.Units}] {progress.Setting.Name}{left}"));
                    }
                }),
                output.Interrupted));
        }
        catch (ArgumentException exception)
        {
            throw new CommandException($"--bytes: {exception.Message}");
        }
    }

    private RecommendationBudget BudgetOf(ParseResult arguments)
    {
        (double? bytes, double? perplexity) = (arguments.GetValue(_bytes), arguments.GetValue(_perplexity));
        if (bytes is null == perplexity is null)
        {
            throw new CommandException($"expected either {_bytes.Name} or {_perplexity.Name}, but got {(bytes is null ? "neither" : "both")}.");
        }

        try
        {
            return bytes is double ratio ? RecommendationBudget.OfBytes(ratio) : RecommendationBudget.OfPerplexity(perplexity!.Value);
        }
        catch (ArgumentOutOfRangeException exception)
        {
            throw new CommandException($"{(bytes is null ? _perplexity : _bytes).Name}: {exception.Message.Split(" (Parameter ")[0]}");
        }
    }

    private IEnumerable<MustafarOptions> Candidates(string file, MustafarOptions defaults)
    {
        foreach (CacheSetting setting in CacheSettingReader.Load(file, defaults))
        {
            yield return setting.IsSimulated
                ? throw new CommandException($"{_candidates.Name}: {file}: expected formats that caches have, but '{setting.Name}' is simulated.")
                : setting.Layers is null
                ? setting.Options!
                : throw new CommandException($"{_candidates.Name}: {file}: expected settings for all layers, but '{setting.Name}' has one for each.");
        }
    }

    private (PerplexityTask Search, PerplexityTask Check) Tasks(ParseResult arguments, LanguageModel language)
    {
        string file = arguments.GetRequiredValue(_file), checkFile = arguments.GetValue(_checkFile) ?? file;
        string text = ShippedFiles.ReadDocuments(file);
        (string searched, string checkedOn) = arguments.GetValue(_checkFile) is null ? Halves(text) : (text, ShippedFiles.ReadDocuments(checkFile));
        (int context, int prefill, int windows) = (arguments.GetValue(_context), arguments.GetValue(_prefill), arguments.GetValue(_windows));
        PerplexityTask search = ShippedFiles.OfText(
            file, () => new PerplexityTask(language, searched, context, prefill, windows, windows, arguments.GetValue(_step)));
        PerplexityTask check = ShippedFiles.OfText(
            checkFile, () => new PerplexityTask(language, checkedOn, context, prefill, arguments.GetValue(_checkWindows), arguments.GetValue(_batch)));
        return (search, check);
    }

    // At the end of a line.
    private static (string First, string Second) Halves(string text)
    {
        int end = text.IndexOf('\n', text.Length / 2) + 1;
        return end == 0 ? (text[..(text.Length / 2)], text[(text.Length / 2)..]) : (text[..end], text[end..]);
    }
}
