using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Tests.Modules;

[TestFixture]
public sealed class RmsNormTests
{
    [TestCase(ScalarType.Float32, 1e-6)]
    [TestCase(ScalarType.Float16, 4e-3)]
    [TestCase(ScalarType.BFloat16, 3e-2)]
    public void DividesByTheRootMeanSquareAndScales(ScalarType dtype, double tolerance)
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(2);
        const double eps = 0.1;
        using RmsNorm norm = new(6, eps, dtype);
        Parameter weight = norm.parameters().Single();
        using (no_grad())
        {
            weight.normal_();
        }

        Tensor input = randn(2, 3, 6).to(dtype);
        Tensor output = norm.call(input);
        double largest = 0;
        for (int row = 0; row < 6; row++)
        {
            double[] x = [.. input.reshape(6, 6)[row].to(ScalarType.Float64).data<double>()];
            double factor = 1 / Math.Sqrt(x.Average(value => value * value) + eps);
            for (int i = 0; i < 6; i++)
            {
                double expected = x[i] * factor * weight[i].to(ScalarType.Float64).item<double>();
                largest = Math.Max(largest, Math.Abs(output.reshape(6, 6)[row, i].to(ScalarType.Float64).item<double>() - expected));
            }
        }

        using (Assert.EnterMultipleScope())
        {
            Assert.That(output.dtype, Is.EqualTo(dtype));
            Assert.That(output.shape, Is.EqualTo(new long[] { 2, 3, 6 }));
            Assert.That(largest, Is.LessThan(tolerance));
        }
    }

    [Test]
    public void RefusesBadSizes()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => new RmsNorm(0, 1e-6, ScalarType.Float32), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new RmsNorm(8, -1, ScalarType.Float32), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new RmsNorm(8, double.NaN, ScalarType.Float32), Throws.TypeOf<ArgumentOutOfRangeException>());
        }
    }
}
