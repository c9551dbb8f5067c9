using System.Globalization;
using Mustafar.Models.Evaluation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Follows the progress of an evaluation, on the thread that measures.</summary>
internal sealed class EvaluationFollower(Action<EvaluationProgress> follow) : IProgress<EvaluationProgress>
{
    /// <summary>A time as text, in seconds, minutes or hours.</summary>
    public static string Time(TimeSpan time) => time.TotalMinutes < 1.5
        ? string.Create(CultureInfo.InvariantCulture, $"{time.TotalSeconds:F0} s")
        : time.TotalHours < 2
            ? string.Create(CultureInfo.InvariantCulture, $"{time.TotalMinutes:F0} min")
            : string.Create(CultureInfo.InvariantCulture, $"{time.TotalHours:F1} h");

    /// <inheritdoc/>
    public void Report(EvaluationProgress value) => follow(value);
}
