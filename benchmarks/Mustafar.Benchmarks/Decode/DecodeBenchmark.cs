using System.Diagnostics;
using System.Runtime.InteropServices;
using Mustafar.Benchmarks.Cuda;
using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Decode;

/// <summary>Whole decode steps with greedy sampling: the time from the last tokens on the host to the next ones.</summary>
/// <remarks>
/// Each cache is filled with random keys and values, so that it reaches the context with the last step. Its parts are measured on the same
/// cache in steps of their own: attention with what it appends, in all layers, and sampling; the rest is norms, projections and rotations.
/// host: the time in which a step keeps the calling thread busy before it can wait.
/// </remarks>
internal static class DecodeBenchmark
{
    internal const int WarmUp = 4;
    private const long Spare = 3L << 30; // bytes that a largest batch leaves free: logits, buffers, a prompt's temporaries

    internal static void Run(DecodeSettings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        using LlamaForCausalLM model = BenchmarkModel.Load(settings);
        string where = settings.Device.type == DeviceType.CUDA ? CudaRuntime.DeviceName(Math.Max(0, model.Device.index)) : $"{settings.Threads} CPU threads";
        Console.WriteLine($"{where}, {settings.DType}, {model.Config.NumLayers} layers, hidden_size {model.Config.HiddenSize}");
        Report report = new(
            "decode", "context", "batch", "cache", "ms", "tokens/s", "dense ms / ms", "attention ms", "sampling ms", "rest ms", "host ms", "first token ms", "cache MiB", "graph");
        CacheForm[] forms = [new("dense", null), .. settings.Keeps.Select(keep => new CacheForm($"keep {keep}", Data.Options(keep, model.Config.HeadDim)))];
        foreach (int context in settings.Contexts)
        {
            Dictionary<int, double> dense = [];
            foreach (CacheForm form in forms)
            {
                foreach (int batch in settings.Largest ? settings.Batches.Append(Largest(model, form, context)) : settings.Batches)
                {
                    try
                    {
                        Row(settings, model, form, batch, context, dense, report);
                    }
                    catch (Exception error) when (error is ExternalException or CacheBudgetException or OutOfMemoryException)
                    {
                        report.Add(context, batch, form.Name, "does not fit", "", "", "", "", "", "", "", "", "");
                    }
                }
            }
        }

        report.Write(settings.Output, $"Decode steps: the dense cache's time over the compressed one's, {where}");
    }

    private static void Row(
        DecodeSettings settings, LlamaForCausalLM model, CacheForm form, int batch, int context, Dictionary<int, double> dense, Report report)
    {
        double? prefill = batch == 1 ? FirstToken(model, form, context) : null;
        (ModelKeyValueCache cache, int[] sequences) = form.Filled(model, batch, context, missing: 2 * (WarmUp + settings.Steps));
        using (cache)
        {
            using SamplingState sampling = new(batch, model.Config.VocabSize, model.Device, penalties: false);
            for (int row = 0; row < batch; row++)
            {
                sampling.Restart(row, new SamplingParameters { Temperature = 0 });
            }

            using DecodeSteps steps = new(model, cache, batch, sampling, capture: !settings.Eager);
            (double total, double host) = Time(settings, () => steps.Run(sequences), () => steps.Tokens.cpu().Dispose());
            (double attention, _) = Attention(settings, model, cache, sequences);
            using Tensor chosen = steps.Tokens.clone();
            (double draw, _) = Time(settings, () => MustafarOps.Sample(steps.Logits, sampling, tokens: chosen), () => chosen.cpu().Dispose());
            if (form.Options is null)
            {
                dense[batch] = total;
            }

            double ratio = dense.TryGetValue(batch, out double opponent) ? opponent / total : double.NaN;
            report.Add(
                context, batch, form.Name, total, batch / total * 1e3, ratio, attention, draw, total - attention - draw, host,
                prefill is double first ? first : "", cache.Usage.ReservedBytes / 1048576.0, steps.Graph.WhyEager is null ? steps.Graph.Launches > 0 ? "yes" : "no" : steps.Graph.WhyEager);
            Console.WriteLine($"{context} x {batch} {form.Name}: {total:F3} ms, attention {attention:F3}, sampling {draw:F3}, host {host:F3}, ratio {ratio:F2}{(prefill is null ? "" : $", first token after {prefill:F0} ms")}");
            if (form.Options is not null)
            {
                report.AddBar($"{form.Name}, {batch} x {context}", ratio);
            }
        }
    }

    // Milliseconds from a prompt of the whole context to the scores of the token after it: the second of two times.
    private static double FirstToken(LlamaForCausalLM model, CacheForm form, int context)
    {
        double time = 0;
        for (int i = 0; i < 2; i++)
        {
            using IDisposable mode = inference_mode();
            using var scope = NewDisposeScope();
            using ModelCache cache = new(form.Make(model, 1, context));
            Tensor ids = randint(0, model.Config.VocabSize, [1, context], dtype: ScalarType.Int64, device: model.Device);
            ids.cpu().Dispose();
            long start = Stopwatch.GetTimestamp();
            model.NextTokenLogits(ids, cache).cpu().Dispose();
            time = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        }

        return time;
    }

    // The layers' attention alone, over the same cache.
    private static (double Total, double Host) Attention(DecodeSettings settings, LlamaForCausalLM model, ModelKeyValueCache cache, int[] sequences)
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
        return Time(settings, () => graph.Run(sequences), () => end.cpu().Dispose());
    }

    // Medians in milliseconds: until the device is done, and until the call returns.
    private static (double Total, double Host) Time(DecodeSettings settings, Action run, Action wait)
    {
        List<double> totals = [], hosts = [];
        for (int i = -WarmUp; i < settings.Steps; i++)
        {
            using var scope = NewDisposeScope();
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

    private static int Largest(LlamaForCausalLM model, CacheForm form, int context)
    {
        long free = model.Device.type == DeviceType.CUDA
            ? CudaRuntime.FreeMemory(Math.Max(0, model.Device.index))
            : GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / 2;
        return (int)Math.Max(1, (free - Spare) / form.BytesOf(model, context));
    }
}
