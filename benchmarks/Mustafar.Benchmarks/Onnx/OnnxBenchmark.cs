using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Onnx;

/// <summary>A decode step over a filled cache, compared with ONNX Runtime's over caches of Float32 and of 8- and 4-bit integers.</summary>
internal static class OnnxBenchmark
{
    private static readonly int[] s_bits = [32, 8, 4];

    internal static void Run(Settings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        // Another thread's processor time is known by the clock tick only.
        bool ofProcessor = settings.Threads == 1;
        Report report = new(
            "onnx", ["B,H,KV,T", "dtype", "form", ofProcessor ? "processor µs" : "µs", "error", .. s_bits.Select(bits => $"× {Name(bits)}")]);
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes)
            {
                Measure(settings, shape, dtype, ofProcessor, report);
            }
        }

        report.Write(settings.Output);
    }

    private static void Measure(Settings settings, Shape shape, ScalarType dtype, bool ofProcessor, Report report)
    {
        using var scope = NewDisposeScope();
        (Tensor query, Tensor keys, Tensor values) = Data.Random(settings, shape, dtype);
        // Scores that differ enough: an output that is the mean of all values would hide errors.
        query = query.mul(4);
        List<(string Form, Action Step, Func<Tensor> Output)> forms = [];
        List<IDisposable> held = [];
        foreach (int bits in s_bits)
        {
            OnnxAttention attention = new(query, keys, values, bits, settings.Threads);
            held.Add(attention);
            forms.Add((Name(bits), attention.Step, () => attention.Output));
        }

        foreach (MustafarOptions options in settings.Keeps.Select(keep => Data.Options(keep, settings.HeadDim)).Prepend(new() { LocalWindow = shape.Tokens }))
        {
            MustafarCache cache = Data.Filled(keys, values, options);
            held.Add(cache);
            forms.Add((FormOf(options, shape, settings), () => cache.Attend(query), () => cache.Attend(query)));
        }

        double[] times = Timing.Interleaved(settings.Seconds, [.. forms.Select(form => form.Step)], ofProcessor);
        using DenseForms dense = new(query.to(ScalarType.Float32), keys.to(ScalarType.Float32), values.to(ScalarType.Float32));
        Tensor exact = dense.Sdpa().reshape(query.shape);
        for (int i = 0; i < forms.Count; i++)
        {
            double error = (forms[i].Output().to(ScalarType.Float32) - exact).norm().div(exact.norm()).item<float>();
            report.Add([shape, dtype, forms[i].Form, times[i], error, .. s_bits.Select((_, other) => (object)(times[other] / times[i]))]);
        }

        held.ForEach(one => one.Dispose());
    }

    private static string Name(int bits) => $"ONNX Runtime {(bits == 32 ? "f32" : $"int{bits}")}";

    private static string FormOf(MustafarOptions options, Shape shape, Settings settings) => options.LocalWindow == shape.Tokens
        ? "own dense"
        : $"{new Kept(options.KeysKept(settings.HeadDim), options.BalancedKeys, options.KeyBits)}";
}
