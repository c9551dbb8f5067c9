using Mustafar.Native;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Cuda;

/// <summary>A decode step over a filled cache on a GPU, compared with torch's implementations of dense attention.</summary>
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

    /// <summary>Times of each back end in its fastest form; infinite where it doesn't support the shape.</summary>
    internal static (double[] Graph, double[] Cold) Dense(Tensor query, Tensor keys, Tensor values, CudaTiming timing)
    {
        using var scope = NewDisposeScope();
        List<(Tensor Keys, Tensor Values)> pairs = [(keys, values)];
        while (pairs.Count < CudaTiming.Copies(4.0 * keys.numel()))
        {
            pairs.Add((keys.clone(), values.clone()));
        }

        double[] graph = [.. Backends.Select(_ => double.PositiveInfinity)], cold = [.. graph];
        for (int i = 0; i < Backends.Length; i++)
        {
            foreach (Func<Tensor, Tensor, Tensor> form in Forms(Backends[i], query, keys))
            {
                Func<Tensor>[] calls = [.. pairs.Select(pair => (Func<Tensor>)(() => form(pair.Keys, pair.Values)))];
                try
                {
                    calls[0]().Dispose();
                }
                catch (Exception error) when (error is System.Runtime.InteropServices.ExternalException or MustafarException)
                {
                    continue;
                }

                (graph[i], cold[i]) = (Math.Min(graph[i], timing.Graph(calls)), Math.Min(cold[i], timing.Cold(calls[0])));
            }
        }

        return (graph, cold);
    }

    // The heads as they are, several of which read a KV head, and those of a KV head as rows of one query.
    private static IEnumerable<Func<Tensor, Tensor, Tensor>> Forms(string backend, Tensor query, Tensor keys)
    {
        double scale = 1 / Math.Sqrt(query.size(3));
        if (backend == "CuDNN" && FusedAttention.HasCuDnn(query))
        {
            yield return (k, v) => TorchShim.CuDnnAttention(query, k, v, bias: null, causal: false, scale);
        }
        else if (backend == "Flash" && FusedAttention.HasFlash(query))
        {
            yield return (k, v) =>
            {
                (Tensor output, Tensor logSumExp) = TorchShim.FlashAttention(query, k, v, causal: false, scale);
                logSumExp.Dispose();
                return output;
            };
        }

        Tensor rows = query.reshape(keys.size(0), keys.size(1), -1, keys.size(3));
        foreach (string other in (string[])[.. Backends, "Math"])
        {
            CudaRuntime.AllowSdpa(other, other == backend);
        }

        yield return (k, v) => nn.functional.scaled_dot_product_attention(rows, k, v);
        foreach (string other in (string[])[.. Backends, "Math"])
        {
            CudaRuntime.AllowSdpa(other, true);
        }
    }
}
