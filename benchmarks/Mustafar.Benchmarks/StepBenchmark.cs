using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>The operations of a decode step other than attention, compared with torch's, at a model's sizes.</summary>
/// <remarks>For a given shape, hidden_size is num_heads · head_dim, intermediate_size 3.5 times that, and the position its number of
/// tokens.</remarks>
internal static class StepBenchmark
{
    private const int VocabSize = 128_256;

    internal static void Run(Settings settings)
    {
        set_num_threads(settings.Threads);
        using var noGrad = no_grad();
        Report report = new("step", "B,H,KV,T", "dtype", "operation", "µs", "torch µs", "torch / ours");
        foreach (Shape shape in settings.Shapes)
        {
            foreach (ScalarType dtype in settings.DTypes)
            {
                Norms(settings, shape, dtype, report);
                Rotations(settings, shape, dtype, report);
                Gates(settings, shape, dtype, report);
                if (shape.Batch <= MustafarOps.MaxLinearRows)
                {
                    Linears(settings, shape, dtype, report);
                }

                Draws(settings, shape, dtype, report);
            }
        }

        report.Write(settings.Output, $"Operations of a decode step: torch's time over Mustafar's, {settings.Threads} CPU threads");
    }

    private static void Norms(Settings settings, Shape shape, ScalarType dtype, Report report)
    {
        using var scope = NewDisposeScope();
        Tensor input = Hidden(settings, shape, dtype), residual = zeros_like(input), weight = ones(input.shape[^1], dtype: dtype, device: input.device);
        Tensor InTorch(Tensor x)
        {
            Tensor wide = x.to(ScalarType.Float32);
            return (wide * (wide * wide).mean([-1], keepdim: true).add_(1e-5).rsqrt_()).to(dtype).mul_(weight);
        }

        Measure("RMSNorm", () => MustafarOps.RmsNorm(input, weight, 1e-5), () => InTorch(input), settings, shape, dtype, report);
        Measure(
            "residual and RMSNorm", () => MustafarOps.RmsNorm(input, weight, 1e-5, residual), () => InTorch(residual.add_(input)),
            settings, shape, dtype, report);
    }

    private static void Rotations(Settings settings, Shape shape, ScalarType dtype, Report report)
    {
        using var scope = NewDisposeScope();
        RotaryOptions options = new() { HeadDim = settings.HeadDim };
        using RotaryEmbedding rotary = new(options);
        Tensor query = randn(shape.Batch, 1, shape.NumHeads, settings.HeadDim, dtype: dtype, device: settings.Device);
        Tensor key = randn(shape.Batch, 1, shape.NumKvHeads, settings.HeadDim, dtype: dtype, device: settings.Device);
        int[] starts = [.. Enumerable.Repeat(shape.Tokens, shape.Batch)];
        Tensor positions = tensor(starts, device: settings.Device).unsqueeze(1);
        RotaryAngles angles = RotaryAngles.PerPosition(tensor(options.AnglesPerPosition(), device: settings.Device));
        Measure(
            "RoPE", () => MustafarOps.Rotate(new(query.transpose(1, 2), key.transpose(1, 2)), positions, angles),
            () => rotary.Apply(query, key, starts), settings, shape, dtype, report);
    }

    private static void Gates(Settings settings, Shape shape, ScalarType dtype, Report report)
    {
        using var scope = NewDisposeScope();
        Tensor product = randn(shape.Batch, 1, 2 * Width(settings, shape), dtype: dtype, device: settings.Device);
        Tensor[] parts = product.chunk(2, -1);
        Measure(
            "SiLU and product", () => MustafarOps.SiluMul(product), () => nn.functional.silu(parts[0]).mul_(parts[1]),
            settings, shape, dtype, report);
    }

    private static void Linears(Settings settings, Shape shape, ScalarType dtype, Report report)
    {
        long hidden = shape.NumHeads * settings.HeadDim, width = Width(settings, shape);
        foreach ((string name, long inFeatures, long outFeatures) in ((string, long, long)[])[
            ("q_proj", hidden, hidden), ("k_proj", hidden, shape.NumKvHeads * settings.HeadDim), ("gate_proj", hidden, width),
            ("down_proj", width, hidden), ("lm_head", hidden, VocabSize)])
        {
            using var scope = NewDisposeScope();
            // So many copies that they don't fit into a cache of 256 MiB, like the weights of a model's layers.
            long bytes = inFeatures * outFeatures * empty(0, dtype: dtype).element_size();
            Tensor[] weights = [.. Enumerable.Range(0, (int)((256 << 20) / bytes) + 1)
                .Select(_ => full(outFeatures, inFeatures, 0.01, dtype: dtype, device: settings.Device))];
            Tensor input = randn(shape.Batch, 1, inFeatures, dtype: dtype, device: settings.Device);
            int next = 0;
            Tensor Weight() => weights[next++ % weights.Length];
            Measure(name, () => MustafarOps.Linear(input, Weight()), () => nn.functional.linear(input, Weight()), settings, shape, dtype, report);
        }
    }

    private static void Draws(Settings settings, Shape shape, ScalarType dtype, Report report)
    {
        using var scope = NewDisposeScope();
        Tensor logits = 3 * randn(shape.Batch, VocabSize, device: settings.Device);
        logits = logits.to(dtype);
        using SamplingState state = new(shape.Batch, VocabSize, settings.Device);
        Tensor Softmax() => logits.to(ScalarType.Float32).softmax(-1);
        foreach ((string name, SamplingParameters parameters, Func<Tensor> inTorch) in ((string, SamplingParameters, Func<Tensor>)[])[
            ("greedy", new() { Temperature = 0 }, () => logits.argmax(-1)),
            ("temperature", new(), () => multinomial(Softmax(), 1)),
            ("top-k 50", new() { TopK = 50 }, () =>
            {
                (Tensor values, Tensor ids) = logits.to(ScalarType.Float32).topk(50, -1);
                return ids.gather(-1, multinomial(values.softmax(-1), 1));
            }),
            ("top-p 0.9", new() { TopP = 0.9 }, () =>
            {
                (Tensor probabilities, Tensor ids) = Softmax().sort(-1, descending: true);
                Tensor nucleus = probabilities.masked_fill((probabilities.cumsum(-1) - probabilities).gt(0.9), 0);
                return ids.gather(-1, multinomial(nucleus, 1));
            })])
        {
            for (int row = 0; row < shape.Batch; row++)
            {
                state.Restart(row, parameters);
            }

            Measure(name, () => MustafarOps.Sample(logits, state), () => inTorch(), settings, shape, dtype, report);
        }
    }

    private static Tensor Hidden(Settings settings, Shape shape, ScalarType dtype) =>
        randn(shape.Batch, 1, shape.NumHeads * settings.HeadDim, dtype: dtype, device: settings.Device);

    private static long Width(Settings settings, Shape shape) => shape.NumHeads * settings.HeadDim * 7L / 2;

    private static void Measure(
        string name, Action ours, Action torchs, Settings settings, Shape shape, ScalarType dtype, Report report)
    {
        double[] times = Timing.Interleaved(settings.Seconds / 2, [ours, torchs]);
        report.Add(shape, dtype, name, times[0], times[1], times[1] / times[0]);
        report.AddBar($"{name}, {shape}, {dtype}", times[1] / times[0]);
    }
}
