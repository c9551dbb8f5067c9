using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class LinearTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    private static readonly (int InFeatures, int OutFeatures)[] LargeSizes =
        [(1000, 1001), (256, 6144), (4096, 500), (14336, 200), (5000, 300), (16384, 77)];

    [Test]
    public void Products_with_all_that_stands_around_them(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(0, 1, 3, 7, 8, 19)] int rows, [Values] bool gated, [Values] bool everything)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            foreach ((int inFeatures, int outFeatures, int gap) in ((int, int, int)[])[(1, 1, 0), (31, 5, 1), (256, 18, 0), (333, 129, 0), (512, 40, 3)])
            {
                Case(dtype, rows, inFeatures, outFeatures, gap, gated, everything, $"{variant} {dtype} {rows} x {inFeatures} -> {outFeatures}");
            }
        });
    }

    /// <summary>Rows as wide as those of large models, and weights of many or few rows.</summary>
    [Test]
    public void Large_products(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [ValueSource(nameof(LargeSizes))] (int InFeatures, int OutFeatures) size)
    {
        foreach ((int rows, bool gated, bool everything) in ((int, bool, bool)[])[(1, true, false), (3, false, true), (8, true, true)])
        {
            Case(dtype, rows, size.InFeatures, size.OutFeatures, gap: 0, gated, everything, $"{dtype} {rows} x {size}");
        }
    }

    /// <summary>Whichever way is the fastest for their number: one kernel, tensor cores, or torch's product.</summary>
    [Test]
    public void Any_number_of_rows(
        [Values(ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype,
        [Values(1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65)] int rows,
        [Values] bool gated,
        [Values] bool everything)
    {
        // Larger ones are divided among a GPU's multiprocessors in several ways.
        (int, int, int)[] small = [(8, 1, 0), (64, 128, 0), (72, 130, 8), (1000, 70, 3)];
        (int, int, int)[] large = [(1000, 1001, 0), (4096, 512, 0), (14336, 200, 0), (256, 20000, 0), (2048, 5200, 0)];
        foreach ((int inFeatures, int outFeatures, int gap) in device == "cpu" ? small : [.. small, .. large])
        {
            Case(dtype, rows, inFeatures, outFeatures, gap, gated, everything, $"{dtype} {rows} x {inFeatures} -> {outFeatures}", fused: true);
        }
    }

    /// <summary>A row of more features than CUDA kernels hold, and rows that end within 16 bytes.</summary>
    [Test]
    public void Any_number_of_features([Values(1, 2, 32)] int rows, [Values(1001, 131072)] int inFeatures)
    {
        using var scope = NewDisposeScope();
        manual_seed(rows);
        Tensor Random(int count) => randn(count, inFeatures + 8 - (inFeatures % 8)).to(ScalarType.BFloat16).to(device).narrow(1, 0, inFeatures);
        Tensor x = Random(rows), weight = Random(40);
        Tensor exact = ReferenceStep.Exact(x).matmul(ReferenceStep.Exact(weight).t());
        ReferenceStep.AtMostTwiceTorchs(MustafarOps.FusedLinear(x, weight), exact, x.matmul(weight.t()), $"{rows} x {inFeatures}");
    }

    /// <summary>Rows of their own, so that what one row gets does not depend on the others.</summary>
    [Test]
    public void Rows_do_not_see_each_other([Values(3, 8, 20, 32)] int rows)
    {
        using var scope = NewDisposeScope();
        manual_seed(rows);
        Tensor x = randn(rows, 512).to(ScalarType.BFloat16).to(device), weight = randn(300, 512).to(ScalarType.BFloat16).to(device);
        Tensor all = MustafarOps.Linear(x, weight), others = x.clone();
        others[1].fill_(float.NaN);
        others[2].fill_(float.PositiveInfinity);
        Tensor changed = MustafarOps.Linear(others, weight);
        Tensor kept = arange(rows, device: device).gt(2);
        kept[0] = true;
        Assert.Multiple(() =>
        {
            Assert.That(changed[kept].Equals(all[kept]), Is.True);
            Assert.That(changed[1].isnan().all().item<bool>(), Is.True);
            Assert.That(changed[2].isfinite().any().item<bool>(), Is.False);
        });
    }

    [TestCase(ScalarType.Float32, 16384)]
    [TestCase(ScalarType.BFloat16, 32768)]
    public void The_widest_rows_that_are_promised_are_served(ScalarType dtype, int inFeatures) =>
        Case(dtype, 2, inFeatures, 40, gap: 0, gated: true, everything: true, $"{dtype} {inFeatures}");

    /// <summary>Only CUDA keeps rows in shared memory; the CPU serves any.</summary>
    [Test]
    public void Rows_that_do_not_fit_are_refused()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(1, 1 << 17, device: device);
        Assert.That(
            () => MustafarOps.Linear(x, x),
            device == "cpu" ? Throws.Nothing : Throws.TypeOf<NotSupportedException>().With.Message.Contains("in_features"));
    }

    [Test]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(2, 8, device: device), weight = randn(6, 8, device: device);
        Assert.Multiple(() =>
        {
            Assert.That(() => MustafarOps.Linear(null!, weight), Throws.ArgumentNullException);
            Assert.That(() => MustafarOps.Linear(x, null!), Throws.ArgumentNullException);
            Assert.That(() => MustafarOps.Linear(randn(33, 8, device: device), weight), Throws.ArgumentException.With.Message.Contains("at most 32 rows"));
            Assert.That(() => MustafarOps.Linear(x, weight[.., ..7]), Throws.ArgumentException.With.Property("ParamName").EqualTo("weight"));
            Assert.That(() => MustafarOps.Linear(x, weight[..5], new LinearFusion { Gated = true }), Throws.ArgumentException.With.Message.Contains("2 * out_features"));
            Assert.That(() => MustafarOps.Linear(x, randn(8, 6, device: device).t()), Throws.ArgumentException.With.Property("ParamName").EqualTo("weight"));
            Assert.That(() => MustafarOps.Linear(x, weight.to(ScalarType.BFloat16)), Throws.ArgumentException.With.Message.Contains("BFloat16"));
            Assert.That(() => MustafarOps.Linear(x, weight, new LinearFusion { Norm = weight[0][..4] }), Throws.ArgumentException.With.Property("ParamName").EqualTo("Norm"));
            Assert.That(() => MustafarOps.Linear(x, weight, new LinearFusion { Bias = weight[0] }), Throws.ArgumentException.With.Property("ParamName").EqualTo("Bias"));
            Assert.That(() => MustafarOps.Linear(x, weight, new LinearFusion { Residual = x }), Throws.ArgumentException.With.Property("ParamName").EqualTo("Residual"));
            Assert.That(() => MustafarOps.Linear(x, weight, new LinearFusion { Eps = -1 }), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => MustafarOps.Linear(x, weight, output: x[.., ..6]), Throws.ArgumentException.With.Message.Contains("overlaps"));
        });
    }

    private void Case(ScalarType dtype, int rows, int inFeatures, int outFeatures, int gap, bool gated, bool everything, string what, bool fused = false)
    {
        using var scope = NewDisposeScope();
        manual_seed(inFeatures + rows);
        Tensor Random(int count, int width) => randn(count, width + gap).to(dtype).to(device).narrow(1, gap, width);
        int parts = gated ? 2 : 1;
        Tensor x = Random(rows, inFeatures), weight = Random(parts * outFeatures, inFeatures);
        weight.mul_(tensor(1 / Math.Sqrt(inFeatures)));
        LinearFusion fusion = new() { Gated = gated };
        Tensor output = Random(rows, outFeatures);
        if (everything)
        {
            Tensor norm = Random(1, inFeatures)[0], bias = Random(1, parts * outFeatures)[0];
            fusion = fusion with { Norm = norm, Bias = bias, Eps = 1e-5, Residual = output };
        }

        Tensor exact = everything ? ReferenceStep.RmsNorm(x, fusion.Norm!, 1e-5) : ReferenceStep.Exact(x), torchs = x;
        if (everything)
        {
            torchs = ReferenceStep.RmsNormInTorch(x, fusion.Norm!, 1e-5);
        }

        exact = exact.matmul(ReferenceStep.Exact(weight).t());
        torchs = torchs.matmul(weight.t());
        if (everything)
        {
            (exact, torchs) = (exact + ReferenceStep.Exact(fusion.Bias!), torchs + fusion.Bias!);
        }

        if (gated)
        {
            Tensor[] halves = torchs.chunk(2, -1);
            (exact, torchs) = (ReferenceStep.SiluMul(exact), nn.functional.silu(halves[0]) * halves[1]);
        }

        if (everything)
        {
            (exact, torchs) = (exact + ReferenceStep.Exact(output), torchs + output);
        }

        Tensor result = fused ? MustafarOps.FusedLinear(x, weight, fusion, output) : MustafarOps.Linear(x, weight, fusion, output);
        Assert.That(result, Is.SameAs(output));
        if (rows > 0)
        {
            ReferenceStep.AtMostTwiceTorchs(output, exact, torchs, what);
        }
    }
}
