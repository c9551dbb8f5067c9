using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class SiluMulTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    [Test]
    public void Gates_multiply(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(1, 7, 64, 1001, 14336)] int width, [Values(0, 3)] int gap)
    {
        using var scope = NewDisposeScope();
        manual_seed(width);
        Tensor x = (4 * randn(3, 2, (2 * width) + gap)).to(dtype).to(device).narrow(2, gap, 2 * width);
        x[0, 0, 0] = tensor(-100f);
        x[0, 1, 0] = tensor(60f);
        Tensor[] parts = x.chunk(2, -1);
        Tensor torchs = nn.functional.silu(parts[0]) * parts[1], exact = ReferenceStep.SiluMul(x);
        ReferenceStep.AtMostTwiceTorchs(MustafarOps.SiluMul(x), exact, torchs, $"{dtype} {width}, {gap} elements apart");
        Tensor output = empty(3, 2, width + gap, dtype: dtype, device: device).narrow(2, gap, width);
        Assert.That(MustafarOps.SiluMul(x, output), Is.SameAs(output));
        ReferenceStep.AtMostTwiceTorchs(output, exact, torchs, $"{dtype} {width}, {gap} elements apart, into a tensor");
    }

    [Test]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(2, 8, device: device);
        Assert.Multiple(() =>
        {
            Assert.That(() => MustafarOps.SiluMul(null!), Throws.ArgumentNullException);
            Assert.That(() => MustafarOps.SiluMul(randn(2, 7, device: device)), Throws.ArgumentException.With.Message.Contains("7"));
            Assert.That(() => MustafarOps.SiluMul(x.to(ScalarType.Int64)), Throws.ArgumentException.With.Message.Contains("Int64"));
            Assert.That(() => MustafarOps.SiluMul(x, x[.., ..3]), Throws.ArgumentException.With.Property("ParamName").EqualTo("output"));
            Assert.That(() => MustafarOps.SiluMul(x, x[.., ..4]), Throws.ArgumentException.With.Message.Contains("overlaps"));
        });
    }
}
