using System.Text.Json.Nodes;
using Mustafar.Models.Generation;

namespace Mustafar.Models.Evaluation;

/// <summary>A number that a task measures, as reports show it.</summary>
/// <param name="Key">Its name in JSON.</param>
/// <param name="Title">Its name in tables.</param>
/// <param name="Format">A .NET format string for it, such as F3 or P1.</param>
public sealed record Metric(string Key, string Title, string Format);

/// <summary>What a task found for a setting.</summary>
/// <param name="Metrics">Values by <see cref="Metric.Key"/>.</param>
/// <param name="Details">What else is worth keeping, such as the answers; nothing if null.</param>
public sealed record TaskResult(IReadOnlyDictionary<string, double> Metrics, JsonNode? Details = null);

/// <summary>Something that is measured for each cache setting, in parts, each of which is kept as soon as it is done.</summary>
/// <remarks>Derive from it to measure something of your own. A part must not depend on the parts before it.</remarks>
public abstract class EvaluationTask
{
    /// <summary>Makes a task.</summary>
    /// <param name="name">Its name: letters, digits, '-' and '_', since files have it in theirs.</param>
    /// <param name="language">The model.</param>
    /// <exception cref="ArgumentException">The name has other characters.</exception>
    protected EvaluationTask(string name, LanguageModel language)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        ArgumentNullException.ThrowIfNull(language);
        if (!name.All(c => char.IsAsciiLetterOrDigit(c) || c is '-' or '_'))
        {
            throw new ArgumentException($"Expected letters, digits, '-' and '_', but got '{name}'.", nameof(name));
        }

        (Name, Language) = (name, language);
    }

    /// <summary>The task's name.</summary>
    public string Name { get; }

    /// <summary>The model.</summary>
    public LanguageModel Language { get; }

    /// <summary>What is measured, the most telling number first.</summary>
    public abstract IReadOnlyList<Metric> Metrics { get; }

    /// <summary>Number of parts.</summary>
    public abstract int Parts { get; }

    /// <summary>All that the result depends on beside model and setting: another value means that everything is measured anew.</summary>
    public abstract JsonObject Inputs { get; }

    /// <summary>Tokens that a part takes through the model, roughly: for estimates of the time left.</summary>
    /// <param name="part">0 to <see cref="Parts"/> − 1.</param>
    public abstract long TokensOf(int part);

    /// <summary>Measures a part.</summary>
    /// <param name="setting">How to cache.</param>
    /// <param name="part">0 to <see cref="Parts"/> − 1.</param>
    /// <param name="progress">Told the share of the part that is done, 0 to 1.</param>
    /// <param name="cancellationToken">Stops the work.</param>
    /// <returns>What <see cref="Summarize"/> needs of it; not null, and with numbers that are finite.</returns>
    /// <exception cref="OperationCanceledException">It was stopped.</exception>
    public abstract JsonNode MeasurePart(CacheSetting setting, int part, IProgress<double> progress, CancellationToken cancellationToken);

    /// <summary>Puts the parts together.</summary>
    /// <param name="parts">What <see cref="MeasurePart"/> gave for each part, in order.</param>
    public abstract TaskResult Summarize(IReadOnlyList<JsonNode> parts);
}
