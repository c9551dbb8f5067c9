using System.Diagnostics;

namespace Mustafar.Models.Evaluation;

/// <summary>The progress of an evaluation.</summary>
/// <param name="Unit">The unit that is being measured, 0 to <paramref name="Units"/> − 1.</param>
/// <param name="Units">Number of units: tasks times settings.</param>
/// <param name="Task">The unit's task.</param>
/// <param name="Setting">The unit's setting.</param>
/// <param name="Share">Finished share of the unit, 0 to 1.</param>
/// <param name="Left">Estimated time left for all units; null until something has been measured.</param>
public sealed record EvaluationProgress(int Unit, int Units, EvaluationTask Task, CacheSetting Setting, double Share, TimeSpan? Left);

/// <summary>Measures tasks for cache settings, and saves each result as soon as it is finished.</summary>
/// <remarks>
/// Results are saved in a directory. A second run with the same model, settings and tasks reuses them and continues where the first one
/// stopped. If that was in the middle of a unit, only the unit's unfinished parts are measured again.
/// </remarks>
/// <example>
/// <code>
/// using LanguageModel language = LanguageModel.Load(directory);
/// EvaluationTask[] tasks = [new PerplexityTask(language, text, context: 200, prefill: 40)];
/// CacheSetting[] settings = [new("4 bits", MustafarPresets.FourBits), new("half", MustafarPresets.HalfInFourBits)];
/// EvaluationRun run = new(tasks, settings, results);
/// new EvaluationReport([.. run.Run()]).Write(results); // results.json, results.md
/// </code>
/// </example>
public sealed class EvaluationRun
{
    private readonly IReadOnlyList<EvaluationTask> _tasks;
    private readonly IReadOnlyList<CacheSetting> _settings;
    private readonly EvaluationStore _store;

    // What this run has measured itself, to estimate the time left.
    private readonly Stopwatch _measuring = new();
    private double _measuredTokens;
    private double _tokensLeft;

    /// <summary>Prepares a run.</summary>
    /// <param name="tasks">The tasks to measure.</param>
    /// <param name="settings">The settings to measure them for; the dense setting is put first if it is not among them.</param>
    /// <param name="directory">Where results are saved; created if it does not exist.</param>
    /// <exception cref="ArgumentException">There are no tasks, or two tasks or settings have the same name.</exception>
    /// <exception cref="Checkpoint.UnsupportedModelException">The model's keys and values can't be compressed with a setting.</exception>
    /// <exception cref="IOException">The directory can't be created or written to.</exception>
    public EvaluationRun(IReadOnlyList<EvaluationTask> tasks, IEnumerable<CacheSetting> settings, string directory)
    {
        ArgumentNullException.ThrowIfNull(tasks);
        ArgumentNullException.ThrowIfNull(settings);
        if (tasks.Count == 0 || tasks.Select(task => task.Name).Distinct().Count() != tasks.Count)
        {
            throw new ArgumentException(
                $"Expected tasks of different names, but got {(tasks.Count == 0 ? "none" : string.Join(", ", tasks.Select(task => task.Name)))}.",
                nameof(tasks));
        }

        _tasks = tasks;
        _settings = CacheSettingReader.WithDense(settings.Where(setting => setting != CacheSetting.Dense));
        foreach (CacheSetting setting in _settings)
        {
            setting.CheckFits(tasks[0].Language.Model.Config, Path.Combine(tasks[0].Language.Directory, "config.json"));
        }

        _store = new EvaluationStore(directory);
    }

    /// <summary>Number of units: tasks times settings.</summary>
    public int Units => _tasks.Count * _settings.Count;

    /// <summary>Measures what has not been measured yet.</summary>
    /// <param name="progress">Receives the progress.</param>
    /// <param name="cancellationToken">Cancels the work; finished parts are kept.</param>
    /// <returns>Each unit as soon as its result is known, task by task, the dense setting first.</returns>
    /// <exception cref="OperationCanceledException">The work was cancelled.</exception>
    /// <exception cref="IOException">A result can't be written.</exception>
    public IEnumerable<EvaluationUnit> Run(IProgress<EvaluationProgress>? progress = null, CancellationToken cancellationToken = default)
    {
        (EvaluationTask Task, CacheSetting Setting, EvaluationUnit? Known)[] units =
        [
            .. from task in _tasks from setting in _settings select (task, setting, _store.Find(task, setting)),
        ];
        _tokensLeft = units.Where(unit => unit.Known is null).Sum(unit => Enumerable.Range(0, unit.Task.Parts).Sum(part => (double)unit.Task.TokensOf(part)));
        for (int i = 0; i < units.Length; i++)
        {
            yield return units[i].Known ?? Measure(i, units[i].Task, units[i].Setting, progress, cancellationToken);
        }
    }

    private EvaluationUnit Measure(
        int number, EvaluationTask task, CacheSetting setting, IProgress<EvaluationProgress>? progress, CancellationToken cancellationToken)
    {
        EvaluationUnit unit;
        using (EvaluationParts parts = _store.OpenParts(task, setting))
        {
            _tokensLeft -= Enumerable.Range(0, parts.Results.Count).Sum(part => (double)task.TokensOf(part));
            for (int part = parts.Results.Count; part < task.Parts; part++)
            {
                cancellationToken.ThrowIfCancellationRequested();
                Stopwatch stopwatch = Stopwatch.StartNew();
                _measuring.Start();
                Reporter reporter = new(this, progress, number, task, setting, part);
                reporter.Report(0);
                parts.Add(task.MeasurePart(setting, part, reporter, cancellationToken), stopwatch.Elapsed.TotalSeconds);
                _measuring.Stop();
                _measuredTokens += task.TokensOf(part);
                _tokensLeft -= task.TokensOf(part);
            }

            unit = new EvaluationUnit(task, setting, task.Summarize(parts.Results), parts.Seconds);
        }

        _store.Save(unit);
        progress?.Report(new EvaluationProgress(number, Units, task, setting, 1, TimeLeft(0)));
        return unit;
    }

    // The time left after the given number of tokens of the current part.
    private TimeSpan? TimeLeft(double ofPart)
    {
        double done = _measuredTokens + ofPart;
        return done > 0 ? _measuring.Elapsed * ((_tokensLeft - ofPart) / done) : null;
    }

    private sealed class Reporter(
        EvaluationRun run, IProgress<EvaluationProgress>? progress, int number, EvaluationTask task, CacheSetting setting, int part)
        : IProgress<double>
    {
        public void Report(double value) => progress?.Report(new EvaluationProgress(
            number, run.Units, task, setting, (part + value) / task.Parts, run.TimeLeft(value * task.TokensOf(part))));
    }
}
