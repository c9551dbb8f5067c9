using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>Pruning and compressing a prompt's keys and values, compared with copying them and with the prompt's attention.</summary>
internal static class CompressBenchmark
{
    internal static void Run(Settings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        Report report = new("compress", "B,H,KV,T", "dtype", "keep", "µs", "ns per row", "GB/s of input", "torch copy µs", "× copy",
            "prefill attention µs", "% of prefill", "× with importance");
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
                    report.Add(shape, dtype, keep, time, time * 1e3 / rows, bytes / time / 1e3, copy, time / copy, prefill, 100 * time / prefill, ByImportance(settings, keys, keep));
                    report.AddBar(BarChart.Label(shape, dtype, keep), time / copy);
                }
            }
        }

        report.Write(settings.Output, $"Prune and compress: time over a plain copy, {settings.Threads} CPU threads");
    }

    // Compressing keys by magnitude times an importance per channel, relative to compressing them by magnitude.
    private static double ByImportance(Settings settings, Tensor keys, Kept keep)
    {
        MustafarOptions options = Data.Options(keep, settings.HeadDim);
        int kept = options.KeysKept(settings.HeadDim);
        if (kept == settings.HeadDim)
        {
            return double.NaN;
        }

        SparsityPattern pattern = options.BalancedKeys ? SparsityPattern.BalancedKeys : SparsityPattern.Unstructured;
        using Tensor importance = keys.abs().sum(2).to(ScalarType.Float32);
        double plain = Timing.Median(settings.Seconds, () => BitmapTensor.Compress(keys, kept, pattern, options.KeyBits).Dispose());
        return Timing.Median(
            settings.Seconds, () => BitmapTensor.Compress(keys, kept, pattern, options.KeyBits, importance: importance).Dispose()) / plain;
    }
}
