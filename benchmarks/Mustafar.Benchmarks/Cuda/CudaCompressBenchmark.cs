using System.Diagnostics;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Cuda;

/// <summary>Pruning and compressing on a GPU: whole prompts, and one token of each sequence.</summary>
internal static class CudaCompressBenchmark
{
    internal static void Prompt(Settings settings)
    {
        using var noGrad = no_grad();
        using CudaTiming timing = new(settings.Device);
        Report report = new("compress-cuda", "B,H,KV,T", "dtype", "keep", "keys and values µs", "µs of 64 x 8192 rows", "torch copy µs", "× copy");
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes)
            {
                using var scope = NewDisposeScope();
                (_, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
                double copy = timing.Cold(() => keys.clone()) + timing.Cold(() => values.clone());
                foreach (Kept keep in settings.Keeps)
                {
                    using MustafarCache cache = Data.Filled(keys, values, Data.Options(keep, settings.HeadDim));
                    double time = timing.Cold(
                        () =>
                        {
                            cache.Append(keys, values);
                            return empty(0, device: settings.Device);
                        },
                        cache.Clear);
                    double rows = 2.0 * shape.Batch * shape.NumKvHeads * shape.Tokens;
                    report.Add(shape, dtype, keep, time, time * 64 * 8192 / rows, copy, time / copy);
                    report.AddBar(BarChart.Label(shape, dtype, keep), time / copy);
                }
            }
        }

        report.Write(settings.Output, "Prune and compress on a GPU: time over a plain copy");
    }

    internal static void Append(Settings settings)
    {
        using var noGrad = no_grad();
        using CudaTiming timing = new(settings.Device);
        Report report = new(
            "append-cuda", "B,H,KV,T", "dtype", "keep", "append µs", "append with groups due µs", "attention µs", "mean % of attention",
            "host µs of Append + Attend");
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes)
            {
                foreach (Kept keep in settings.Keeps)
                {
                    Append(settings, shape, dtype, keep, timing, report);
                }
            }
        }

        report.Write(settings.Output, "Appending a token on a GPU: mean time in percent of the attention step");
    }

    private static void Append(Settings settings, Shape shape, ScalarType dtype, Kept keep, CudaTiming timing, Report report)
    {
        using var scope = NewDisposeScope();
        MustafarOptions options = Data.Options(keep, settings.HeadDim);
        (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
        Tensor key = keys.narrow(2, 0, 1).contiguous(), value = values.narrow(2, 0, 1).contiguous();
        using MustafarCache cache = Data.Filled(keys, values, options);
        double attention = timing.Cold(() => cache.Attend(query));

        // One at a time, each on an empty stream.
        List<double> plain = [], due = [];
        for (int step = 0; step < 8 * options.GroupSize; step++)
        {
            int compressed = cache.CompressedLengths[0];
            double time = timing.Once(() => cache.Append(key, value));
            (cache.CompressedLengths[0] == compressed ? plain : due).Add(time);
        }

        // How long the calls keep the calling thread busy while the GPU has work.
        const int hostSteps = 200;
        timing.Wait();
        Stopwatch host = Stopwatch.StartNew();
        for (int step = 0; step < hostSteps; step++)
        {
            cache.Append(key, value);
            cache.Attend(query).Dispose();
        }

        double hostTime = host.Elapsed.TotalMicroseconds / hostSteps;
        timing.Wait();
        double totalTime = host.Elapsed.TotalMicroseconds / hostSteps;
        plain.Sort();
        due.Sort();
        (double usual, double group) = (plain[plain.Count / 2], due[due.Count / 2]);
        double mean = (((options.GroupSize - 1) * usual) + group) / options.GroupSize;
        report.Add(shape, dtype, keep, usual, group, attention, 100 * mean / attention, $"{hostTime:0.0} (with the GPU's work {totalTime:0.0})");
        report.AddBar(BarChart.Label(shape, dtype, keep), 100 * mean / attention);
    }
}
