using System.Text.Json.Nodes;
using Mustafar.Models.Generation;

namespace Mustafar.Models.Evaluation;

/// <summary>A number that a task measures, as shown in reports.</summary>
/// <param name="Key">Its name in JSON.</param>
/// <param name="Title">Its name in tables.</param>
/// <param name="Format">A .NET format string for it, such as F3 or P1.</param>
public sealed record Metric(string Key, string Title, string Format);

/// <summary>What a task measured for a setting.</summary>
/// <param name="Metrics">Values by <see cref="Metric.Key"/>.</param>
/// <param name="Details">Other results that are worth keeping, such as the answers; null for none.</param>
public sealed record TaskResult(IReadOnlyDictionary<string, double> Metrics, JsonNode? Details = null);

/// <summary>Something that is measured for each cache setting, in parts, each of which is saved as soon as it is finished.</summary>
/// <remarks>Derive from it to measure something of your own. A part must not depend on the parts before it.</remarks>
public abstract class EvaluationTask
{
    /// <summary>Makes a task.</summary>
    /// <param name="name">Its name: letters, digits, '-' and '_', since file names contain it.</param>
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

    /// <summary>The metrics, the most telling one first.</summary>
    public abstract IReadOnlyList<Metric> Metrics { get; }

    /// <summary>Number of parts.</summary>
    public abstract int Parts { get; }

    /// <summary>Everything that the result depends on, apart from model and setting. If it changes, everything is measured again.</summary>
    public abstract JsonObject Inputs { get; }

    /// <summary>The approximate number of tokens that the model processes for a part, for estimates of the time left.</summary>
    /// <param name="part">The part's number, 0 to <see cref="Parts"/> − 1.</param>
    public abstract long TokensOf(int part);

    /// <summary>Measures a part.</summary>
    /// <param name="setting">The cache setting.</param>
    /// <param name="part">The part's number, 0 to <see cref="Parts"/> − 1.</param>
    /// <param name="progress">Receives the finished share of the part, 0 to 1.</param>
    /// <param name="cancellationToken">Cancels the work.</param>
    /// <returns>What <see cref="Summarize"/> needs from the part: not null, and all numbers finite.</returns>
    /// <exception cref="OperationCanceledException">The work was cancelled.</exception>
    public abstract JsonNode MeasurePart(CacheSetting setting, int part, IProgress<double> progress, CancellationToken cancellationToken);

    /// <summary>Combines the parts.</summary>
    /// <param name="parts">The results of <see cref="MeasurePart"/> for each part, in order.</param>
    public abstract TaskResult Summarize(IReadOnlyList<JsonNode> parts);
}
