using System.CommandLine;
using System.Globalization;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Llama;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Compares cache settings with the dense cache, keeps each result, and resumes an earlier run.</summary>
internal sealed class EvaluateCommand : LlamaCommand
{
    private readonly Option<string> _output = new("--output")
    {
        Description = "Directory for the results; a second run resumes from what is there.",
        HelpName = "DIR",
        Required = true,
    };

    private readonly Option<string[]> _setting = new("--setting")
    {
        Description = "Setting to measure: NAME: PRESET, or NAME: key_sparsity=0.5, value_bits=4; may be repeated. "
            + $"Presets: {string.Join(", ", CacheSettingReader.Presets.Keys)}. Default: the setting given by the other cache options.",
        HelpName = "TEXT",
    };

    private readonly Option<string?> _settings = new("--settings")
    {
        Description = "JSON file of settings: { \"NAME\": \"PRESET\", \"NAME\": { \"key_sparsity\": 0.5 } }.",
        HelpName = "FILE",
    };

    private readonly EvaluationTaskOptions _tasks = new();

    public EvaluateCommand()
        : base("evaluate", "Compare cache settings with the dense cache: perplexity, divergence, bytes, long-context tasks.")
    {
        Add([_output, _setting, _settings, .. _tasks.All]);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        string directory = arguments.GetRequiredValue(_output);
        _tasks.Check(arguments);
        IReadOnlyList<CacheSetting> caches = SettingsOf(arguments, settings);
        string config = Path.Combine(settings.Model, "config.json");
        LlamaConfig model = LlamaConfig.Load(config);
        foreach (CacheSetting cache in caches)
        {
            // Checked before the weights are loaded, which may take minutes.
            cache.CheckFits(model, config);
        }

        using ModelSession session = ModelSession.Load(settings with { Attention = AttentionKind.Dense }, output);
        IReadOnlyList<EvaluationTask> tasks = _tasks.Read(arguments, session.Language);
        EvaluationRun run = new(tasks, caches, directory);
        EvaluationReport report = new(Measure(run, tasks, caches, output));
        report.Write(directory);
        foreach (string problem in EvaluationCharts.Write(report, directory))
        {
            output.Message($"warning: {problem}");
        }

        output.WriteLine(report.ToMarkdown().TrimEnd('\n'));
        output.WriteLine();
        output.WriteLine($"results in {directory}");
        output.WriteJson(report.ToJson());
    }

    // A progress bar for each unit, then its result on a line that stays.
    private static List<EvaluationUnit> Measure(
        EvaluationRun run, IReadOnlyList<EvaluationTask> tasks, IReadOnlyList<CacheSetting> caches, ConsoleOutput output)
    {
        List<EvaluationUnit> done = [];
        TimeSpan? left = null;
        bool measured = false;
        IProgress<double>? bar = null;
        using IEnumerator<EvaluationUnit> units = run.Run(new EvaluationFollower(Follow), output.Interrupted).GetEnumerator();
        while (done.Count < run.Units)
        {
            (EvaluationTask task, CacheSetting cache) = (tasks[done.Count / caches.Count], caches[done.Count % caches.Count]);
            string title = string.Create(CultureInfo.InvariantCulture, $"[{done.Count + 1}/{run.Units}] {task.Name}, {cache.Name}");
            measured = false;
            done.Add(output.WithProgress(title, progress =>
            {
                bar = progress;
                return units.MoveNext() ? units.Current : throw new InvalidOperationException("The run ended early.");
            }));
            string numbers = string.Join(", ", task.Metrics.Select(metric => Text(done[^1], metric)));
            string time = !measured ? "from an earlier run" : done.Count == run.Units ? EvaluationFollower.Time(TimeSpan.FromSeconds(done[^1].Seconds))
                : $"{EvaluationFollower.Time(TimeSpan.FromSeconds(done[^1].Seconds))}; about {EvaluationFollower.Time(left ?? TimeSpan.Zero)} left";
            output.Message($"{title}: {numbers} ({time})");
        }

        return done;

        void Follow(EvaluationProgress progress)
        {
            (measured, left) = (true, progress.Left);
            bar!.Report(progress.Share);
        }
    }

    private static string Text(EvaluationUnit unit, Metric metric) => string.Create(
        CultureInfo.InvariantCulture, $"{metric.Title} {unit.Value(metric.Key).ToString(metric.Format, CultureInfo.InvariantCulture)}");

    private IReadOnlyList<CacheSetting> SettingsOf(ParseResult arguments, CommonSettings settings)
    {
        List<CacheSetting> given = arguments.GetValue(_settings) is string file ? [.. CacheSettingReader.Load(file, settings.Options)] : [];
        foreach (string text in arguments.GetValue(_setting) ?? [])
        {
            try
            {
                given.Add(CacheSettingReader.Parse(text, settings.Options));
            }
            catch (UnusableFileException exception)
            {
                throw new CommandException($"{_setting.Name}: {exception.Message}");
            }
        }

        if ((given.Count == 0 || HasCacheFile(arguments)) && settings.Attention == AttentionKind.Mustafar)
        {
            given.Add(settings.Cache);
        }

        return CacheSettingReader.WithDense(given);
    }
}
