using System.Diagnostics;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Decode;

/// <summary>Measures the steps of one cache.</summary>
/// <remarks>
/// The cache is filled with random keys and values so that it reaches the context with the last step. The parts of a step are measured
/// separately, on the same cache.
/// </remarks>
/// <param name="settings">What is measured, and how often.</param>
/// <param name="model">The model.</param>
/// <param name="baseline">Bytes of the device that were in use before, as <see cref="DeviceMemory.Used"/> counts them.</param>
internal sealed class StepMeasurement(DecodeSettings settings, LlamaForCausalLM model, long baseline)
{
    /// <summary>Steps before those that are timed.</summary>
    internal const int WarmUp = 4;

    /// <summary>New tokens of one sequence in one step over its past, as in the second turn of a chat.</summary>
    internal const int ManyTokens = 16;

    internal DecodeFigures Run(CacheForm form, int batch, int context)
    {
        DeviceMemory.Restart(model.Device);
        double? firstToken = batch == 1 ? FirstToken(form, context) : null;
        using ModelCache cache = form.Filled(model, batch, context, missing: 2 * (WarmUp + settings.Steps));
        int[] sequences = [.. cache.Sequences];
        using SamplingState sampling = new(batch, model.Config.VocabSize, model.Device, penalties: false);
        for (int row = 0; row < batch; row++)
        {
            sampling.Restart(row, new SamplingParameters { Temperature = 0 });
        }

        using DecodeSteps steps = new(model, cache.Cache, batch, sampling, capture: !settings.Eager);
        (double step, double host) = Time(() => steps.Run(sequences), () => steps.Tokens.cpu().Dispose());
        double attention = Attention(cache.Cache, sequences);
        using Tensor chosen = steps.Tokens.clone();
        (double draw, _) = Time(() => MustafarOps.Sample(steps.Logits, sampling, tokens: chosen), () => chosen.cpu().Dispose());
        double? many = batch == 1 ? Many(cache, context) : null;
        return new DecodeFigures(
            step, host, attention, draw, firstToken, many, cache.Cache.Usage.ReservedBytes, DeviceMemory.Peak(model.Device) - baseline,
            steps.Graph.WhyEager ?? (steps.Graph.Launches > 0 ? "yes" : "no"));
    }

    // The second of two times.
    private double FirstToken(CacheForm form, int context)
    {
        double time = 0;
        for (int i = 0; i < 2; i++)
        {
            using IDisposable mode = inference_mode();
            using var scope = NewDisposeScope();
            using ModelCache cache = new(form.Make(model, 1, context));
            Tensor ids = Ids(context);
            ids.cpu().Dispose();
            long start = Stopwatch.GetTimestamp();
            model.NextTokenLogits(ids, cache).cpu().Dispose();
            time = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        }

        return time;
    }

    // From the new tokens to the token chosen after them.
    private double Many(ModelCache cache, int context)
    {
        using IDisposable mode = inference_mode();
        using Tensor ids = Ids(ManyTokens);
        using Tensor next = zeros(1, dtype: ScalarType.Int64, device: model.Device);
        return Time(
            () => next.copy_(model.NextTokenLogits(ids, cache).argmax(-1)),
            () => next.cpu().Dispose(),
            before: () => cache.Truncate(context - ManyTokens)).Total;
    }

    // Only the layers' attention, over the same cache.
    private double Attention(ModelKeyValueCache cache, int[] sequences)
    {
        using var scope = NewDisposeScope();
        Tensor Random(int heads) => randn([sequences.Length, heads, 1, cache.HeadDim], dtype: cache.DType, device: cache.Device);
        Tensor query = Random(model.Config.NumHeads), keys = Random(cache.NumKvHeads), values = Random(cache.NumKvHeads);
        using Tensor end = zeros(1, device: cache.Device);
        using DecodeGraph graph = new(
            cache,
            step =>
            {
                for (int layer = 0; layer < cache.NumLayers; layer++)
                {
                    step.Attend(layer, query, keys, values);
                }
            },
            capture: !settings.Eager);
        return Time(() => graph.Run(sequences), () => end.cpu().Dispose()).Total;
    }

    private Tensor Ids(int tokens) => randint(0, model.Config.VocabSize, [1, tokens], dtype: ScalarType.Int64, device: model.Device);

    // Medians in milliseconds: until the device is done, and until the call returns.
    private (double Total, double Host) Time(Action run, Action wait, Action? before = null)
    {
        List<double> totals = [], hosts = [];
        for (int i = -WarmUp; i < settings.Steps; i++)
        {
            using var scope = NewDisposeScope();
            before?.Invoke();
            wait();
            long start = Stopwatch.GetTimestamp();
            run();
            double host = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
            wait();
            if (i >= 0)
            {
                totals.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds);
                hosts.Add(host);
            }
        }

        return (Median(totals), Median(hosts));
    }

    private static double Median(List<double> times) => times.Order().ElementAt(times.Count / 2);
}
