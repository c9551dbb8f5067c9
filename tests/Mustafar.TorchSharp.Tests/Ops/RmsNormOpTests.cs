using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class RmsNormOpTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    [Test]
    public void Rows_are_divided_by_their_root_mean_square(
        [ValueSource(nameof(DTypes))] ScalarType dtype,
        [Values(1, 7, 64, 333, 1000, 4096, 8200, 14336, 40001)] int hidden,
        [Values(0, 5)] int gap,
        [Values] bool inPlace)
    {
        using var scope = NewDisposeScope();
        manual_seed(hidden);
        Tensor x = (3 * randn(2, 3, hidden + gap)).to(dtype).to(device).narrow(2, gap, hidden), weight = randn(hidden).to(dtype).to(device);
        Tensor exact = ReferenceStep.RmsNorm(x, weight, 1e-5), torchs = ReferenceStep.RmsNormInTorch(x, weight, 1e-5);
        Tensor result = MustafarOps.RmsNorm(x, weight, 1e-5, output: inPlace ? x : null);
        Assert.That(ReferenceEquals(result, x), Is.EqualTo(inPlace));
        ReferenceStep.AtMostTwiceTorchs(result, exact, torchs, $"{dtype} {hidden}, {gap} elements apart");
    }

    [Test]
    public void A_residual_is_added_first([ValueSource(nameof(DTypes))] ScalarType dtype, [Values(5, 256, 1000, 8200)] int hidden)
    {
        using var scope = NewDisposeScope();
        manual_seed(hidden);
        Tensor x = randn(70, hidden).to(dtype).to(device), weight = randn(hidden).to(dtype).to(device);
        // Every other row of a wider tensor.
        Tensor wide = randn(140, hidden + 3).to(dtype).to(device);
        Tensor residual = wide[TensorIndex.Slice(0, null, 2), TensorIndex.Slice(0, hidden)];
        Tensor sum = residual + x, untouched = wide[TensorIndex.Slice(1, null, 2)].clone();
        Tensor result = MustafarOps.RmsNorm(x, weight, 1e-6, residual);
        Compare.Same(residual, sum.cpu(), "residual");
        Compare.Same(wide[TensorIndex.Slice(1, null, 2)], untouched.cpu(), "rows between");
        ReferenceStep.AtMostTwiceTorchs(result, ReferenceStep.RmsNorm(sum, weight, 1e-6), ReferenceStep.RmsNormInTorch(sum, weight, 1e-6), $"{dtype} {hidden}");
    }

    [Test]
    public void Any_layout_is_read_and_no_rows_are_fine()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        Tensor columns = randn(64, 6, device: device).t(), weight = randn(64, device: device);
        Tensor expected = ReferenceStep.RmsNorm(columns, weight, 0);
        Compare.Close(MustafarOps.RmsNorm(columns, weight, 0), expected, 1e-5, 1e-6, "transposed");
        Compare.Close(MustafarOps.RmsNorm(columns[0].expand(3, 64), weight, 0)[2], expected[0], 1e-5, 1e-6, "expanded");
        Assert.That(MustafarOps.RmsNorm(empty(0, 64, device: device), weight, 0).shape, Is.EqualTo(new long[] { 0, 64 }));
    }

    [Test]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(2, 8, device: device), weight = randn(8, device: device);
        Assert.Multiple(() =>
        {
            Assert.That(() => MustafarOps.RmsNorm(null!, weight, 0), Throws.ArgumentNullException);
            Assert.That(() => MustafarOps.RmsNorm(x.to(ScalarType.Float64), weight, 0), Throws.ArgumentException.With.Message.Contains("Float64"));
            Assert.That(() => MustafarOps.RmsNorm(x, weight.to(ScalarType.Float16), 0), Throws.ArgumentException.With.Property("ParamName").EqualTo("weight"));
            Assert.That(() => MustafarOps.RmsNorm(x, weight[..7], 0), Throws.ArgumentException.With.Message.Contains("[7]"));
            Assert.That(() => MustafarOps.RmsNorm(x, weight, -1), Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("eps"));
            Assert.That(() => MustafarOps.RmsNorm(x, weight, double.NaN), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => MustafarOps.RmsNorm(x, weight, 0, residual: x[0]), Throws.ArgumentException.With.Property("ParamName").EqualTo("residual"));
            Assert.That(() => MustafarOps.RmsNorm(x, weight, 0, output: randn(8, 2, device: device).t()),
                Throws.ArgumentException.With.Property("ParamName").EqualTo("output").And.Message.Contains("strides"));
        });
    }
}
