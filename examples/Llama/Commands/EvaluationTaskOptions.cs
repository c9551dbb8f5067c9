using System.CommandLine;
using System.Globalization;
using Mustafar.Models.Chat;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Options that choose what <c>evaluate</c> measures.</summary>
internal sealed class EvaluationTaskOptions
{
    private const string NoTemplate = "none";

    private static readonly string[] s_names = ["perplexity", "recall", "needle", "ruler", "longbench", "longbench-v2"];

    private readonly Option<string> _tasks = CommandOption.Text(
        "--tasks", $"Tasks, separated by commas: {string.Join(", ", s_names)}.", s_names[0], "NAMES");

    private readonly Option<string> _file = CommandOption.Text(
        "--file", "Text to predict (perplexity) and to hide notes and needles in (recall, needle, ruler).", ShippedFiles.HeldOutText, "FILE");

    private readonly Option<int> _context = CommandOption.Number(
        "--context", "Tokens per window of perplexity and per context of recall.", "TOKENS", 2048);

    private readonly Option<int> _prefill = CommandOption.Number(
        "--prefill", "perplexity: how many tokens of a window are its prompt.", "TOKENS", 512);

    private readonly Option<int?> _windows = CommandOption.Number<int>("--windows", "perplexity: windows to measure; default: all.", "N");

    private readonly Option<string> _lengths = CommandOption.Text(
        "--lengths", "needle, ruler: context lengths in tokens, separated by commas.", "512,1024,2048", "TOKENS");

    private readonly Option<int> _depths = CommandOption.Number(
        "--depths", "needle: number of positions, from the beginning to the end of a context.", "N", 5);

    private readonly Option<int?> _samples = CommandOption.Number<int>(
        "--samples",
        "Samples: contexts of recall (default: 100), per length and depth of needle (4), per length of ruler (20), per data set "
            + "of longbench and of longbench-v2 (all).",
        "N");

    private readonly Option<int> _seed = CommandOption.Number("--seed", "Random seed of recall, needle and ruler.", "S", 0);

    private readonly Option<int> _batch = CommandOption.Number(
        "--batch", "Sequences decoded as one batch; without it longbench and longbench-v2 decode one at a time.", "N", 11);

    private readonly Option<string?> _longBench = new("--longbench")
    {
        Description = "Folder of LongBench: dataset2prompt.json, dataset2maxlen.json and the data sets' JSONL files.",
        HelpName = "DIR",
    };

    private readonly Option<string?> _longBenchV2 = new("--longbench-v2")
    {
        Description = "File of LongBench v2: data.json as published, or JSONL.",
        HelpName = "FILE",
    };

    private readonly Option<string?> _datasets = new("--datasets")
    {
        Description = "longbench: data sets, separated by commas; default: all English and code data sets in the folder.",
        HelpName = "NAMES",
    };

    private readonly Option<int?> _promptTokens = CommandOption.Number<int>(
        "--max-prompt-tokens", "longbench, longbench-v2: length to which longer prompts are cut; default: what the model's context allows.", "TOKENS");

    private readonly Option<string?> _chatTemplate = new("--chat-template")
    {
        Description = "longbench, longbench-v2: a chat template by name or file, or none; default: the checkpoint's own.",
        HelpName = "NAME",
    };

    /// <summary>All options.</summary>
    public IEnumerable<Option> All =>
    [
        _tasks, _file, _context, _prefill, _windows, _lengths, _depths, _samples, _seed, _batch, _longBench, _longBenchV2, _datasets,
        _promptTokens, _chatTemplate,
    ];

    /// <summary>Does the checks that are possible before the model is loaded.</summary>
    /// <exception cref="CommandException">A value is not one that can be used.</exception>
    public void Check(ParseResult arguments)
    {
        _ = Names(arguments);
        _ = Lengths(arguments);
        foreach (Option<int> option in (Option<int>[])[_context, _prefill, _depths, _batch])
        {
            CommandOption.Positive(option.Name, arguments.GetValue(option));
        }

        foreach (Option<int?> option in (Option<int?>[])[_windows, _samples, _promptTokens])
        {
            CommandOption.Positive(option.Name, arguments.GetValue(option) ?? 1);
        }

        (int prefill, int context) = (arguments.GetValue(_prefill), arguments.GetValue(_context));
        if (prefill >= context)
        {
            throw new CommandException($"{_prefill.Name}: expected less than the context of {context}, but got {prefill}.");
        }

        foreach ((string name, Option<string?> option, string what) in
            ((string, Option<string?>, string)[])[("longbench", _longBench, "folder of LongBench"), ("longbench-v2", _longBenchV2, "file of LongBench v2")])
        {
            if (Names(arguments).Contains(name) && arguments.GetValue(option) is null)
            {
                throw new CommandException($"{option.Name}: expected the {what}, which {_tasks.Name} needs, but it is not given.");
            }
        }
    }

    /// <summary>Makes the tasks.</summary>
    /// <exception cref="CommandException">A value is not one that can be used.</exception>
    public IReadOnlyList<EvaluationTask> Read(ParseResult arguments, LanguageModel language)
    {
        string file = arguments.GetRequiredValue(_file);
        string text = ShippedFiles.ReadDocuments(file);
        return
        [
            .. Names(arguments).SelectMany(name => name == "longbench" ? LongBench(arguments, language)
                : name == "longbench-v2" ? [LongBenchV2(arguments, language)]
                : ShippedFiles.OfText(file, () => OfText(name, arguments, language, text).ToArray())),
        ];
    }

    private IEnumerable<EvaluationTask> OfText(string name, ParseResult arguments, LanguageModel language, string text)
    {
        (int context, int batch, int seed) = (arguments.GetValue(_context), arguments.GetValue(_batch), arguments.GetValue(_seed));
        int? samples = arguments.GetValue(_samples);
        int[] lengths = Lengths(arguments);
        int depths = arguments.GetValue(_depths);
        switch (name)
        {
            case "perplexity":
                yield return new PerplexityTask(language, text, context, arguments.GetValue(_prefill), arguments.GetValue(_windows), batch);
                break;
            case "recall":
                yield return new RecallTask(language, text, samples ?? 100, context, seed, batch);
                break;
            case "needle":
                double[] places = [.. Enumerable.Range(0, depths).Select(i => depths == 1 ? 0.5 : (double)i / (depths - 1))];
                yield return new NeedleTask(language, text, lengths, places, samples ?? 4, seed, batch);
                break;
            default:
                foreach (RulerKind kind in Enum.GetValues<RulerKind>())
                {
                    yield return new RulerTask(language, kind, text, lengths, samples ?? 20, seed, batch);
                }

                break;
        }
    }

    private IEnumerable<EvaluationTask> LongBench(ParseResult arguments, LanguageModel language)
    {
        string directory = arguments.GetValue(_longBench)!;
        LongBenchFolder folder = new(directory);
        string[] datasets = arguments.GetValue(_datasets) is string names ? Words(names) : [.. folder.Available];
        if (datasets.Length == 0)
        {
            throw new CommandException($"{directory}: expected data sets such as {LongBenchFolder.Datasets[0]}.jsonl, here or in the folder data, but found none.");
        }

        ChatTemplate? template = Template(arguments, language);
        return datasets.Distinct().Select(dataset => new LongBenchTask(
            language, folder, dataset, template, arguments.GetValue(_promptTokens), arguments.GetValue(_samples), LongBatch(arguments)));
    }

    private LongBenchV2Task LongBenchV2(ParseResult arguments, LanguageModel language) => new(
        language,
        arguments.GetValue(_longBenchV2)!,
        Template(arguments, language),
        arguments.GetValue(_promptTokens),
        arguments.GetValue(_samples),
        LongBatch(arguments));

    // Prompts may be as long as the context: several take much memory.
    private int LongBatch(ParseResult arguments) => arguments.GetResult(_batch) is { Implicit: false } ? arguments.GetValue(_batch) : 1;

    private ChatTemplate? Template(ParseResult arguments, LanguageModel language)
    {
        string? name = arguments.GetValue(_chatTemplate);
        return name == NoTemplate ? null : ChatTemplate.Load(language.Directory, name);
    }

    private string[] Names(ParseResult arguments)
    {
        string[] names = [.. Words(arguments.GetRequiredValue(_tasks)).Distinct()];
        return names.Length > 0 && names.All(s_names.Contains)
            ? names
            : throw new CommandException(
                $"{_tasks.Name}: expected some of {string.Join(", ", s_names)}, but got '{arguments.GetRequiredValue(_tasks)}'.");
    }

    private int[] Lengths(ParseResult arguments)
    {
        string text = arguments.GetRequiredValue(_lengths);
        int?[] lengths = [.. Words(text).Distinct().Select(word =>
            int.TryParse(word, NumberStyles.None, CultureInfo.InvariantCulture, out int length) && length > 0 ? length : (int?)null)];
        return lengths.Length > 0 && !lengths.Contains(null)
            ? [.. lengths.Select(length => length!.Value)]
            : throw new CommandException($"{_lengths.Name}: expected whole numbers above 0, separated by commas, but got '{text}'.");
    }

    private static string[] Words(string text) => text.Split(',', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries);
}
