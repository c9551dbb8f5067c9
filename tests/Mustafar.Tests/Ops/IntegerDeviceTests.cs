using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

/// <summary>What devices have of 8- and 4-bit tensors: the channel scales of keys. Integers they keep in caches only.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class IntegerDeviceTests(string device)
{
    private const int Heads = 2;

    [Test]
    public void Channel_scales_are_as_the_format_says(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype, [Values(64, 96, 256)] int headDim)
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        Tensor x = randn(1, Heads, 83, headDim);
        x[TensorIndex.Ellipsis, TensorIndex.Slice(2, 6)] *= 20;
        x = x.to(dtype);
        (x[0, 0, 3, 5], x[0, 0, 4, 6], x[0, 1, 5, 7]) = (tensor(float.NaN, dtype), tensor(float.NegativeInfinity, dtype), tensor(3e4f, dtype));
        x[TensorIndex.Ellipsis, 9] = 0;
        Tensor scales = MustafarOps.KeyChannelScales(x.to(device));
        Assert.That(scales.shape, Is.EqualTo(new long[] { 1, Heads, headDim }));
        Assert.That(Values.Of(scales), Is.EqualTo(ReferenceIntegers.ChannelScales(x[0])));
    }

    [Test]
    public void Tensors_of_integers_are_refused_off_the_cpu(
        [Values(8, 4)] int bits, [Values(SparsityPattern.All, SparsityPattern.Unstructured, SparsityPattern.BalancedKeys)] SparsityPattern pattern)
    {
        if (device == "cpu")
        {
            Assert.Ignore("The CPU has them.");
        }

        using var scope = NewDisposeScope();
        Tensor x = randn(1, Heads, 40, 64).to(ScalarType.Float16).to(device);
        int keep = pattern == SparsityPattern.All ? 64 : 32;
        Assert.That(
            () => BitmapTensor.Compress(x, keep, pattern, bits), Throws.TypeOf<NotSupportedException>().With.Message.Contains("value_format"));
        Assert.That(() => BitmapTensor.CompressMasked(x, x.gt(0), bits), Throws.TypeOf<NotSupportedException>().With.Message.Contains("value_format"));
    }
}
