using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>Pruning and compressing a prompt's keys and values, against copying them and against the prompt's own attention.</summary>
internal static class CompressBenchmark
{
    internal static void Run(Settings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        Report report = new("compress", "B,H,KV,T", "dtype", "keep", "µs", "ns per row", "GB/s of input", "torch copy µs", "× copy",
            "prefill attention µs", "% of prefill");
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes)
            {
                using var scope = NewDisposeScope();
                (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype, queries: shape.Tokens);
                double copy = Timing.Median(settings.Seconds, () =>
                {
                    keys.clone();
                    values.clone();
                });
                using MustafarCache prompt = Data.Empty(keys, new MustafarOptions { LocalWindow = shape.Tokens });
                double prefill = Timing.BestOfTwo(() =>
                {
                    prompt.Clear();
                    prompt.Forward(query, keys, values);
                });
                foreach (Kept keep in settings.Keeps)
                {
                    using MustafarCache cache = Data.Empty(keys, Data.Options(keep, settings.HeadDim));
                    double time = Timing.Median(settings.Seconds, () =>
                    {
                        cache.Clear();
                        cache.Append(keys, values);
                    });
                    double rows = 2.0 * shape.Batch * shape.NumKvHeads * shape.Tokens;
                    double bytes = rows * settings.HeadDim * (dtype == ScalarType.Float32 ? 4 : 2);
                    report.Add(shape, dtype, keep, time, time * 1e3 / rows, bytes / time / 1e3, copy, time / copy, prefill, 100 * time / prefill);
                    report.AddBar(BarChart.Label(shape, dtype, keep), time / copy);
                }
            }
        }

        report.Write(settings.Output, $"Prune and compress: time over a plain copy, {settings.Threads} CPU threads");
    }
}
