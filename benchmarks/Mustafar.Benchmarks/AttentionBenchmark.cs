using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>A decode step over a filled cache, compared with dense attention in torch and with our own kernels on dense tokens.</summary>
internal static class AttentionBenchmark
{
    internal static void Run(Settings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        double bandwidth = Timing.ReadBandwidth();
        Console.WriteLine($"{settings.Threads} threads, read bandwidth {bandwidth:0.0} GB/s (torch sum over 1 GiB)");
        Report report = new(
            "attention", "B,H,KV,T", "dtype", "keep", "µs", "GB/s", "% of bandwidth", "torch SDPA µs", "torch matmul µs", "own dense µs",
            "× best torch", "× own dense");
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes)
            {
                Measure(settings, shape, dtype, bandwidth, report);
            }
        }

        report.Write(settings.Output, $"Decode attention: speed-up over the fastest dense form of torch, {settings.Threads} CPU threads");
    }

    private static void Measure(Settings settings, Shape shape, ScalarType dtype, double bandwidth, Report report)
    {
        using var scope = NewDisposeScope();
        (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
        using DenseForms dense = new(query, keys, values);
        double sdpa = Timing.Median(settings.Seconds, () => dense.Sdpa());
        double matmul = Timing.Median(settings.Seconds, () => dense.MatMul());
        // A window longer than the sequence keeps all tokens dense.
        using MustafarCache window = Data.Filled(keys, values, new MustafarOptions { LocalWindow = shape.Tokens });
        double own = Timing.Median(settings.Seconds, () => window.Attend(query));
        foreach (Kept keep in settings.Keeps)
        {
            using MustafarCache cache = Data.Filled(keys, values, Data.Options(keep, settings.HeadDim));
            double time = Timing.Median(settings.Seconds, () => cache.Attend(query));
            double rate = Data.BytesRead(cache) / time / 1e3;
            double ratio = Math.Min(sdpa, matmul) / time;
            report.Add(shape, dtype, keep, time, rate, 100 * rate / bandwidth, sdpa, matmul, own, ratio, own / time);
            report.AddBar(BarChart.Label(shape, dtype, keep), ratio);
        }
    }
}
