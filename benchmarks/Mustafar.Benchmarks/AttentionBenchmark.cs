using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>A decode step over a filled cache, against torch's dense forms and against our own kernels on dense tokens.</summary>
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
        manual_seed(1);
        Tensor query = Data.Random(CPU, dtype, shape.Batch, shape.NumHeads, 1, settings.HeadDim);
        Tensor keys = Data.Random(CPU, dtype, shape.Batch, shape.NumKvHeads, shape.Tokens, settings.HeadDim);
        Tensor values = Data.Random(CPU, dtype, shape.Batch, shape.NumKvHeads, shape.Tokens, settings.HeadDim);
        using DenseForms dense = new(query, keys, values);
        double sdpa = Timing.Median(settings.Seconds, () => dense.Sdpa());
        double matmul = Timing.Median(settings.Seconds, () => dense.MatMul());
        // A window longer than the sequence keeps all tokens dense.
        using MustafarCache window = Filled(shape, keys, values, new MustafarOptions { LocalWindow = shape.Tokens });
        double own = Timing.Median(settings.Seconds, () => window.Attend(query));
        foreach (Kept keep in settings.Keeps)
        {
            using MustafarCache cache = Filled(shape, keys, values, Data.Options(keep, settings.HeadDim));
            double time = Timing.Median(settings.Seconds, () => cache.Attend(query));
            double rate = cache.Memory.TotalBytes / time / 1e3;
            double ratio = Math.Min(sdpa, matmul) / time;
            report.Add(shape, dtype, keep, time, rate, 100 * rate / bandwidth, sdpa, matmul, own, ratio, own / time);
            report.AddBar(BarChart.Label(shape, dtype, keep), ratio);
        }
    }

    private static MustafarCache Filled(Shape shape, Tensor keys, Tensor values, MustafarOptions options)
    {
        MustafarCache cache = new(shape.Batch, shape.NumKvHeads, (int)keys.shape[3], keys.dtype, CPU, options);
        cache.Append(keys, values);
        return cache;
    }
}
