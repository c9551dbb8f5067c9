using System.Globalization;
using Mustafar.Benchmarks.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>
/// How much faster a decode step is than torch's fastest dense form, from small and short work to large and long: one row for each number
/// of KV heads of all sequences, one column for each length.
/// </summary>
internal static class GridBenchmark
{
    private static readonly int[] Heads = [1, 2, 4, 8, 16];
    private static readonly int[] Lengths = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17];

    internal static void Run(Settings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        using CudaTiming? timing = settings.Device.type == DeviceType.CUDA ? new(settings.Device) : null;
        Report report = new(
            "grid", ["dtype", "query heads per KV head", "keep", "KV heads", .. Lengths.Select(length => length.ToString(CultureInfo.InvariantCulture))]);
        List<(double Ratio, string What)> all = [];
        foreach (ScalarType dtype in settings.DTypes.Where(dtype => timing is null || dtype != ScalarType.Float32))
        {
            foreach (int group in settings.Groups)
            {
                double[,,] ratios = new double[settings.Keeps.Count, Heads.Length, Lengths.Length];
                for (int h = 0; h < Heads.Length; h++)
                {
                    for (int t = 0; t < Lengths.Length; t++)
                    {
                        // At most 8 heads in one sequence.
                        int batch = Math.Max(1, Heads[h] / 8), heads = Heads[h] / batch;
                        Shape shape = new(batch, group * heads, heads, Lengths[t]);
                        double[] measured = timing is null ? OnCpu(settings, shape, dtype) : OnCuda(settings, shape, dtype, timing);
                        for (int k = 0; k < measured.Length; k++)
                        {
                            ratios[k, h, t] = measured[k];
                            all.Add((measured[k], $"{shape} {dtype} keep {settings.Keeps[k]}"));
                        }
                    }
                }

                for (int k = 0; k < settings.Keeps.Count; k++)
                {
                    for (int h = 0; h < Heads.Length; h++)
                    {
                        report.Add([dtype, group, settings.Keeps[k], Heads[h], .. Enumerable.Range(0, Lengths.Length).Select(t => (object)ratios[k, h, t])]);
                    }
                }
            }
        }

        report.Write(settings.Output);
        foreach ((double ratio, string what) in all.OrderBy(cell => cell.Ratio).Take(Math.Max(3, all.Count(cell => cell.Ratio < 1))))
        {
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{ratio:0.00} × the fastest dense form: {what}"));
        }
    }

    private static double[] OnCpu(Settings settings, Shape shape, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
        using DenseForms dense = new(query, keys, values);
        MustafarCache[] caches = [.. settings.Keeps.Select(keep => Data.Filled(keys, values, Data.Options(keep, settings.HeadDim)))];
        try
        {
            double[] times = Timing.Interleaved(
                settings.Seconds, [() => dense.Sdpa(), () => dense.MatMul(), .. caches.Select(cache => (Action)(() => cache.Attend(query)))]);
            return [.. times[2..].Select(time => Math.Min(times[0], times[1]) / time)];
        }
        finally
        {
            Array.ForEach(caches, cache => cache.Dispose());
        }
    }

    // The lower of the two ratios: of calls in a graph, and of calls with nothing in the GPU's cache.
    private static double[] OnCuda(Settings settings, Shape shape, ScalarType dtype, CudaTiming timing)
    {
        using var scope = NewDisposeScope();
        (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
        (double[] graphs, double[] colds) = CudaAttentionBenchmark.Dense(query, keys, values, timing);
        return [.. settings.Keeps.Select(keep =>
        {
            (double graph, double cold, _) = CudaAttentionBenchmark.Compressed(settings, query, keys, values, keep, timing);
            return Math.Min(graphs.Min() / graph, colds.Min() / cold);
        })];
    }
}
