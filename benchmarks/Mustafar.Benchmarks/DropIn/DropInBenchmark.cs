using System.Diagnostics;
using System.Runtime.InteropServices;
using Mustafar.Benchmarks.Cuda;
using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models.GenAI;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.DropIn;

/// <summary>A model like Microsoft.ML.GenAI's, rewritten here, with random weights: as it is, and with <c>UseMustafar</c>.</summary>
/// <remarks>
/// A step is the time from the last tokens on the device to the next ones on the host, with its mask made as the package makes it. The
/// model's own cache is filled with random keys and values; compressed ones are filled by prompts of a few thousand tokens at a time, as
/// the model's masks allow. "host" is the time for which a step keeps the calling thread busy before the thread can wait.
/// </remarks>
internal static class DropInBenchmark
{
    internal const int WarmUp = 6;
    private const int ChunkTokens = 16384; // of all sequences
    private const int WarmUpPrompt = 512;
    private const int CompiledAfter = 200; // steps

    internal static void Run(DropInSettings settings)
    {
        set_num_threads(settings.Threads);
        // The model is made as its package makes it, which never names a device: its tensors go to the default one.
        set_default_device(settings.Device);
        using var noGrad = no_grad();
        manual_seed(0);
        zeros(1).cpu().Dispose(); // the memory that a device needs in any case is allocated from here on
        using LlamaForCausalLM model = new(
            settings.Sizes.Heads, settings.Sizes.KvHeads, dtype: settings.DType,
            sizes: new ModelSizes(
                settings.Sizes.Layers, settings.Sizes.Hidden / settings.Sizes.Heads, settings.Sizes.Vocab, settings.Sizes.Intermediate));
        model.eval();
        bool onDevice = settings.Device.type == DeviceType.CUDA;
        string where = onDevice ? CudaRuntime.DeviceName(Math.Max(0, settings.Device.index)) : $"{settings.Threads} CPU threads";
        Console.WriteLine($"{where}, {settings.DType}, {settings.Sizes.Layers} layers, hidden_size {settings.Sizes.Hidden}");
        MustafarOptions everything = new() { KeySparsity = 0, ValueSparsity = 0 };
        MustafarOptions pruned = Data.Options(settings.Keep, settings.Sizes.Hidden / settings.Sizes.Heads);
        if (settings.Prompt > 0)
        {
            Prompt(settings, model, pruned);
        }

        (string Name, MustafarOptions? Options, bool Linear)[] forms =
        [
            ("own", null, false),
            ($"keep {settings.Keep}", pruned, false), ($"keep {settings.Keep}, linear", pruned, true),
            ("sparsity 0", everything, false), ("sparsity 0, linear", everything, true),
        ];
        // Until the runtime has compiled everything with full optimisation: on a GPU the host's time counts.
        foreach ((_, MustafarOptions? options, bool linear) in onDevice ? forms : [])
        {
            Steps(settings with { Steps = CompiledAfter }, model, options, linear, batch: 1, context: WarmUp + CompiledAfter + 1);
        }

        Report report = new("dropin", "context", "batch", "attention", "ms", "own ms / ms", "host ms", "cache MiB");
        foreach (int context in settings.Contexts)
        {
            foreach (int batch in settings.Batches)
            {
                double own = double.NaN;
                foreach ((string name, MustafarOptions? options, bool linear) in forms)
                {
                    try
                    {
                        (double total, double host, double cache) = Steps(settings, model, options, linear, batch, context);
                        own = options is null ? total : own;
                        report.Add(context, batch, name, total, own / total, host, cache);
                        Console.WriteLine($"{batch} x {context} {name}: {total:F2} ms, host {host:F2}, ratio {own / total:F2}, cache {cache:F0} MiB");
                        if (options is not null)
                        {
                            report.AddBar($"{name}, {batch} x {context}", own / total);
                        }
                    }
                    catch (Exception error) when (error is ExternalException or OutOfMemoryException)
                    {
                        report.Add(context, batch, name, "does not fit", "", "", "");
                    }
                }
            }
        }

        report.Write(settings.Output, $"Decode steps of ML.GenAI's classes: its own time over the drop-in's, {where}");
    }

    private static (double Total, double Host, double CacheMiB) Steps(
        DropInSettings settings, LlamaForCausalLM model, MustafarOptions? options, bool linear, int batch, int context)
    {
        using MustafarAttachment? attachment = options is null ? null : model.UseMustafar(options, linear);
        using DynamicKVCache cache = new();
        int start = context - WarmUp - settings.Steps;
        if (attachment is null)
        {
            FillOwn(settings, cache, batch, start);
        }
        else
        {
            Fill(settings, model, cache, batch, start);
        }

        Tensor tokens = Ids(settings, batch, 1);
        List<double> totals = [], hosts = [];
        for (int i = -WarmUp; i < settings.Steps; i++, start++)
        {
            tokens.cpu().Dispose();
            long begin = Stopwatch.GetTimestamp();
            using (DisposeScope scope = NewDisposeScope())
            {
                Tensor next = model.Logits(tokens, start, cache, zeros([batch, 1, 1, start + 1], dtype: settings.DType)).argmax(-1);
                tokens.Dispose();
                tokens = next.MoveToOuterDisposeScope();
            }

            double host = Stopwatch.GetElapsedTime(begin).TotalMilliseconds;
            tokens.cpu().Dispose();
            if (i >= 0)
            {
                totals.Add(Stopwatch.GetElapsedTime(begin).TotalMilliseconds);
                hosts.Add(host);
            }
        }

        tokens.Dispose();
        double bytes = attachment?.Memory.TotalBytes
            ?? cache.Values.Sum(layer => (layer.Item1.numel() + layer.Item2.numel()) * layer.Item1.element_size());
        return (Median(totals), Median(hosts), bytes / (1 << 20));
    }

    private static void FillOwn(DropInSettings settings, DynamicKVCache cache, int batch, int tokens)
    {
        for (int layer = 0; layer < settings.Sizes.Layers; layer++)
        {
            Tensor Random() => randn([batch, settings.Sizes.KvHeads, tokens, settings.Sizes.Hidden / settings.Sizes.Heads], dtype: settings.DType);
            cache.UpdateKVCache(Random(), Random(), layer);
        }
    }

    private static void Fill(DropInSettings settings, LlamaForCausalLM model, DynamicKVCache cache, int batch, int tokens)
    {
        int chunk = Math.Max(1, ChunkTokens / batch);
        for (int start = 0; start < tokens; start += chunk)
        {
            using var scope = NewDisposeScope();
            int count = Math.Min(chunk, tokens - start);
            model.LastLogits(Ids(settings, batch, count), start, cache, Mask(settings, count, start + count)).cpu().Dispose();
        }
    }

    // One prompt in one forward. Counts what torch took from the device meanwhile, which it doesn't give back by itself.
    private static void Prompt(DropInSettings settings, LlamaForCausalLM model, MustafarOptions options)
    {
        Report report = new("dropin-prompt", "tokens", "attention", "first ms", "second ms", "peak MiB", "cache MiB", "peak - cache MiB");
        using MustafarAttachment attachment = model.UseMustafar(options, linearInWeightDType: true);
        // Loads kernels and their workspaces.
        using (DisposeScope loading = NewDisposeScope())
        using (DynamicKVCache cache = new())
        {
            model.LastLogits(Ids(settings, 1, WarmUpPrompt), 0, cache, Mask(settings, WarmUpPrompt, WarmUpPrompt)).cpu().Dispose();
        }

        attachment.ReleaseAll();
        DeviceMemory.Restart(settings.Device);
        long before = DeviceMemory.Used(settings.Device);
        double[] times = new double[2];
        double peak = 0, cached = 0;
        for (int i = 0; i < times.Length; i++)
        {
            using DynamicKVCache cache = new();
            using var scope = NewDisposeScope();
            Tensor ids = Ids(settings, 1, settings.Prompt);
            ids.cpu().Dispose();
            long begin = Stopwatch.GetTimestamp();
            model.LastLogits(ids, 0, cache, Mask(settings, settings.Prompt, settings.Prompt)).cpu().Dispose();
            times[i] = Stopwatch.GetElapsedTime(begin).TotalMilliseconds;
            if (i == 0)
            {
                peak = (DeviceMemory.Peak(settings.Device) - before) / 1048576.0;
                cached = attachment.Memory.TotalBytes / 1048576.0;
            }

            attachment.ReleaseAll();
        }

        report.Add(settings.Prompt, $"keep {settings.Keep}, linear", times[0], times[1], peak, cached, peak - cached);
        report.Write(settings.Output);
    }

    private static Tensor Ids(DropInSettings settings, int batch, int tokens) =>
        randint(0, settings.Sizes.Vocab, [batch, tokens], dtype: ScalarType.Int64);

    // [1, 1, n, columns] in the model's type, made in place: it is the largest tensor of a long prompt.
    private static Tensor Mask(DropInSettings settings, int tokens, int columns) =>
        full([tokens, columns], finfo(settings.DType).min, dtype: settings.DType).triu_(columns - tokens + 1).unsqueeze(0).unsqueeze(0);

    private static double Median(List<double> times) => times.Order().ElementAt(times.Count / 2);
}
