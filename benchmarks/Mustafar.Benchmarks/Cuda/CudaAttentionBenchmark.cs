using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Cuda;

/// <summary>A decode step over a filled cache on a GPU, compared with torch's implementations of dense attention.</summary>
/// <remarks>
/// Dense attention gets the query heads of a group as rows of one query, so that it reads keys and values once, as our kernels do.
/// </remarks>
internal static class CudaAttentionBenchmark
{
    private static readonly string[] Backends = ["CuDNN", "Flash", "MemEfficient"];

    internal static void Run(Settings settings)
    {
        using var noGrad = no_grad();
        using CudaTiming timing = new(settings.Device);
        double bandwidth = timing.CopyBandwidth();
        Console.WriteLine($"copy bandwidth {bandwidth / 1e12:0.00} TB/s");
        Report report = new(
            "attention-cuda", "B,H,KV,T", "dtype", "keep", "graph µs", "cold µs", "TB/s", "% of copy bandwidth", "cuDNN graph µs", "Flash graph µs",
            "efficient graph µs", "best cold µs", "× best dense (graph)", "× best dense (cold)");
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes.Where(dtype => dtype != ScalarType.Float32))
            {
                Measure(settings, shape, dtype, bandwidth, timing, report);
            }
        }

        report.Write(settings.Output, "Decode attention: speed-up over the fastest dense back end of torch (CUDA graphs)");
    }

    private static void Measure(Settings settings, Shape shape, ScalarType dtype, double bandwidth, CudaTiming timing, Report report)
    {
        using var scope = NewDisposeScope();
        (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
        (double[] graphs, double[] colds) = Dense(query, keys, values, timing);
        foreach (Kept keep in settings.Keeps)
        {
            (double graph, double cold, double bytes) = Compressed(settings, query, keys, values, keep, timing);
            double rate = bytes / graph * 1e6;
            report.Add(
                shape, dtype, keep, graph, cold, rate / 1e12, 100 * rate / bandwidth, graphs[0], graphs[1], graphs[2], colds.Min(),
                graphs.Min() / graph, colds.Min() / cold);
            report.AddBar(BarChart.Label(shape, dtype, keep), graphs.Min() / graph);
        }
    }

    /// <summary>Times of a step over compressed tokens, and the bytes that it reads.</summary>
    internal static (double Graph, double Cold, double Bytes) Compressed(
        Settings settings, Tensor query, Tensor keys, Tensor values, Kept keep, CudaTiming timing)
    {
        List<MustafarCache> caches = [Data.Filled(keys, values, Data.Options(keep, settings.HeadDim))];
        try
        {
            double bytes = Data.BytesRead(caches[0]);
            while (caches.Count < CudaTiming.Copies(bytes))
            {
                caches.Add(Data.Filled(keys, values, Data.Options(keep, settings.HeadDim)));
            }

            double graph = timing.Graph([.. caches.Select(cache => (Func<Tensor>)(() => cache.Attend(query)))]);
            return (graph, timing.Cold(() => caches[0].Attend(query)), bytes);
        }
        finally
        {
            caches.ForEach(cache => cache.Dispose());
        }
    }

    /// <summary>Times of each back end; infinite where it doesn't support the shape.</summary>
    internal static (double[] Graph, double[] Cold) Dense(Tensor query, Tensor keys, Tensor values, CudaTiming timing)
    {
        using var scope = NewDisposeScope();
        long[] shape = keys.shape;
        Tensor rows = query.reshape(shape[0], shape[1], -1, shape[3]);
        List<(Tensor Keys, Tensor Values)> pairs = [(keys, values)];
        while (pairs.Count < CudaTiming.Copies(4.0 * keys.numel()))
        {
            pairs.Add((keys.clone(), values.clone()));
        }

        double[] graph = [.. Backends.Select(_ => double.PositiveInfinity)], cold = [.. graph];
        for (int i = 0; i < Backends.Length; i++)
        {
            foreach (string backend in (string[])[.. Backends, "Math"])
            {
                CudaRuntime.AllowSdpa(backend, backend == Backends[i]);
            }

            Func<Tensor>[] calls = [.. pairs.Select(pair =>
                (Func<Tensor>)(() => nn.functional.scaled_dot_product_attention(rows, pair.Keys, pair.Values)))];
            try
            {
                calls[0]().Dispose();
            }
            catch (System.Runtime.InteropServices.ExternalException)
            {
                continue;
            }

            (graph[i], cold[i]) = (timing.Graph(calls), timing.Cold(calls[0]));
        }

        foreach (string backend in (string[])[.. Backends, "Math"])
        {
            CudaRuntime.AllowSdpa(backend, true);
        }

        return (graph, cold);
    }
}
