using Mustafar.Native;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>A decode step with each instruction set variant that the CPU supports, in turns, compared with torch's dense forms.</summary>
internal static class VariantBenchmark
{
    internal static void Run(Settings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        CpuVariant[] variants = [.. Enum.GetValues<CpuVariant>().Where(variant =>
            variant != CpuVariant.Auto && (NativeMethods.CpuVariants() >> (int)variant & 1) != 0)];
        Report report = new(
            "variants", ["B,H,KV,T", "dtype", "keep", "best torch µs", .. variants.Select(variant => $"{variant} µs"), .. variants.Select(variant => $"{variant} ×")]);
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes)
            {
                Measure(settings, shape, dtype, variants, report);
            }
        }

        report.Write(settings.Output);
    }

    private static void Measure(Settings settings, Shape shape, ScalarType dtype, CpuVariant[] variants, Report report)
    {
        using var scope = NewDisposeScope();
        (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
        using DenseForms dense = new(query, keys, values);
        foreach (Kept keep in settings.Keeps)
        {
            using MustafarCache cache = Data.Filled(keys, values, Data.Options(keep, settings.HeadDim));
            Action[] calls = [() => dense.Sdpa(), () => dense.MatMul(), .. variants.Select(variant => (Action)(() => Attend(cache, query, variant)))];
            double[] times = Timing.Interleaved(settings.Seconds, calls);
            double best = Math.Min(times[0], times[1]);
            report.Add([shape, dtype, keep, best, .. times[2..].Cast<object>(), .. times[2..].Select(time => (object)(best / time))]);
        }
    }

    private static void Attend(MustafarCache cache, Tensor query, CpuVariant variant)
    {
        TensorAccess.ForcedVariant = variant;
        try
        {
            cache.Attend(query);
        }
        finally
        {
            TensorAccess.ForcedVariant = null;
        }
    }
}
