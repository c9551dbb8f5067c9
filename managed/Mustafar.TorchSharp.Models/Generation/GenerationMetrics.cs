using System.Diagnostics.Metrics;

namespace Mustafar.Models.Generation;

/// <summary>Metrics of generation, in addition to the caches' <see cref="MustafarMetrics"/>.</summary>
/// <remarks>
/// <list type="table">
/// <listheader><term>instrument of <see cref="MeterName"/></term><description>meaning</description></listheader>
/// <item><term><c>mustafar.generation.prompt_tokens</c> (tokens)</term><description>Prompt tokens read, without those that a cache
/// already held.</description></item>
/// <item><term><c>mustafar.generation.tokens</c> (tokens)</term><description>Tokens added by decode steps, over all
/// sequences.</description></item>
/// <item><term><c>mustafar.generation.prefill.duration</c> (seconds)</term><description>Time to read the prompts of one call.</description></item>
/// <item><term><c>mustafar.generation.step.duration</c> (seconds)</term><description>Time of a decode step, including the choice of its
/// tokens. Tag <c>batch</c>: tokens of the step.</description></item>
/// <item><term><c>mustafar.generation.rate</c> (tokens per second)</term><description>Tokens per second of a decode step, of all sequences
/// together.</description></item>
/// </list>
/// Nothing is measured while nobody listens.
/// </remarks>
public static class GenerationMetrics
{
    /// <summary>Name of the meter: <c>Mustafar.TorchSharp.Models</c>.</summary>
    public const string MeterName = "Mustafar.TorchSharp.Models";

    private static readonly Meter s_meter = new(MeterName, typeof(GenerationMetrics).Assembly.GetName().Version?.ToString(3));

    private static readonly Counter<long> s_promptTokens = s_meter.CreateCounter<long>(
        "mustafar.generation.prompt_tokens", "{token}", "Prompt tokens read.");

    private static readonly Counter<long> s_tokens = s_meter.CreateCounter<long>(
        "mustafar.generation.tokens", "{token}", "Tokens added by decode steps.");

    private static readonly Histogram<double> s_prefill = s_meter.CreateHistogram<double>(
        "mustafar.generation.prefill.duration", "s", "Time to read the prompts of one call.");

    private static readonly Histogram<double> s_step = s_meter.CreateHistogram<double>(
        "mustafar.generation.step.duration", "s", "Time of a decode step.");

    private static readonly Histogram<double> s_rate = s_meter.CreateHistogram<double>(
        "mustafar.generation.rate", "{token}/s", "Tokens per second of a decode step.");

    /// <summary>Reports prompts that were read.</summary>
    internal static void AddPrefill(int tokens, TimeSpan time)
    {
        s_promptTokens.Add(tokens);
        s_prefill.Record(time.TotalSeconds);
    }

    /// <summary>Reports a decode step.</summary>
    internal static void AddStep(int tokens, TimeSpan time)
    {
        s_tokens.Add(tokens);
        if (s_step.Enabled)
        {
            s_step.Record(time.TotalSeconds, new KeyValuePair<string, object?>("batch", tokens));
        }

        if (time > TimeSpan.Zero)
        {
            s_rate.Record(tokens / time.TotalSeconds);
        }
    }
}
