using System.Runtime.InteropServices;
using Mustafar.Benchmarks.Cuda;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Decode;

/// <summary>Whole decode steps with greedy sampling, with dense and compressed caches.</summary>
internal static class DecodeBenchmark
{
    private const long Spare = 3L << 30; // bytes that a largest batch leaves free: logits, buffers, a prompt's temporaries

    internal static void Run(DecodeSettings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        using LlamaForCausalLM model = BenchmarkModel.Load(settings);
        string where = settings.Device.type == DeviceType.CUDA ? CudaRuntime.DeviceName(Math.Max(0, model.Device.index)) : $"{settings.Threads} CPU threads";
        Console.WriteLine($"{where}, {settings.DType}, {model.Config.NumLayers} layers, hidden_size {model.Config.HiddenSize}");
        CacheForm[] forms = [new("dense", null), .. settings.Keeps.Select(keep => new CacheForm($"keep {keep}", Data.Options(keep, model.Config.HeadDim)))];
        // Measured now, since torch keeps the memory of caches later.
        StepMeasurement measurement = new(settings, model, DeviceMemory.Used(model.Device));
        long free = DeviceMemory.Free(model.Device) - Spare;
        DecodeReport report = new();
        foreach (int context in settings.Contexts)
        {
            foreach (CacheForm form in forms)
            {
                Dictionary<int, DecodeFigures?> rows = [];
                foreach (int batch in settings.Batches)
                {
                    Row(rows, form, batch, context);
                }

                if (settings.Largest)
                {
                    Largest(rows, form, context);
                }
            }
        }

        report.Write(settings.Output, where);

        // Null if it doesn't fit.
        DecodeFigures? Row(Dictionary<int, DecodeFigures?> rows, CacheForm form, int batch, int context)
        {
            if (rows.TryGetValue(batch, out DecodeFigures? figures))
            {
                return figures;
            }

            try
            {
                figures = measurement.Run(form, batch, context);
            }
            catch (Exception error) when (error is ExternalException or CacheBudgetException or OutOfMemoryException)
            {
            }

            report.Add(form, batch, context, figures);
            return rows[batch] = figures;
        }

        // The estimate leaves out what steps need beside the cache, in case that is more than the share left free for it.
        void Largest(Dictionary<int, DecodeFigures?> rows, CacheForm form, int context)
        {
            for (long batch = free / form.BytesOf(model, context); batch > 0; batch -= 1 + (batch / 16))
            {
                if (Row(rows, form, (int)batch, context) is DecodeFigures figures)
                {
                    report.AddLargest(form, (int)batch, context, figures);
                    return;
                }
            }
        }
    }
}
