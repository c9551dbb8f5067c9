using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>Appending one token to each sequence of a cache, compared with the attention of the same decode step.</summary>
internal static class AppendBenchmark
{
    internal static void Run(Settings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        Report report = new(
            "append", "B,H,KV,T", "dtype", "keep", "append µs", "append with a group due µs", "attention µs", "mean append % of attention");
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes)
            {
                foreach (Kept keep in settings.Keeps)
                {
                    Measure(settings, shape, dtype, keep, report);
                }
            }
        }

        report.Write(settings.Output, $"Appending a token: mean time in percent of the attention step, {settings.Threads} CPU threads");
    }

    private static void Measure(Settings settings, Shape shape, ScalarType dtype, Kept keep, Report report)
    {
        using var scope = NewDisposeScope();
        MustafarOptions options = Data.Options(keep, settings.HeadDim);
        (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
        using MustafarCache cache = Data.Filled(keys, values, options);
        double attention = Timing.Median(settings.Seconds, () => cache.Attend(query));

        Tensor key = keys.narrow(2, 0, 1).contiguous();
        Tensor value = values.narrow(2, 0, 1).contiguous();
        List<double> plain = [], due = [];
        for (int step = 0; step < 20 * options.GroupSize; step++)
        {
            int compressed = cache.CompressedLengths[0];
            long start = System.Diagnostics.Stopwatch.GetTimestamp();
            cache.Append(key, value);
            double time = System.Diagnostics.Stopwatch.GetElapsedTime(start).TotalMicroseconds;
            (cache.CompressedLengths[0] == compressed ? plain : due).Add(time);
        }

        plain.Sort();
        due.Sort();
        (double usual, double group) = (plain[plain.Count / 2], due[due.Count / 2]);
        double mean = ((options.GroupSize - 1) * usual + group) / options.GroupSize;
        report.Add(shape, dtype, keep, usual, group, attention, 100 * mean / attention);
        report.AddBar(BarChart.Label(shape, dtype, keep), 100 * mean / attention);
    }
}
