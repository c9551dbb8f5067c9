using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>What a device has no attention for is refused when a cache is made, and nothing else is.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class ServedFormatsTests(string device)
{
    private static readonly MustafarOptions[] s_patterns =
    [
        new() { KeySparsity = 0 }, new() { KeySparsity = 0.6 }, new() { KeySparsity = 0.5, BalancedKeys = true }, new() { KeySparsity = 0.6875, BalancedKeys = true },
    ];

    [Test]
    public void Caches_are_made_where_they_are_served(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype, [Values(64, 80, 128, 256)] int headDim)
    {
        int made = 0;
        foreach (MustafarOptions options in Options(headDim))
        {
            if (ServedFormats.Serves(device, dtype, headDim, options))
            {
                Make(options).Dispose();
                made++;
            }
            else
            {
                Assert.That(
                    () => Make(options), Throws.TypeOf<NotSupportedException>().With.Message.Contains(device).And.Message.Contains("keys of"), $"{options}");
            }
        }

        Assert.That(made, Is.GreaterThan(3), "formats without integers are served everywhere");

        MustafarCache Make(MustafarOptions options) => new(1, 1, headDim, dtype, new torch.Device(device), options);
    }

    [Test]
    public void What_stands_for_others_in_tests_is_served(
        [Values(ScalarType.Float32, ScalarType.Float16)] ScalarType dtype, [Values(64, 80, 128)] int headDim, [Values("cpu", "cuda")] string on)
    {
        foreach (MustafarOptions options in Options(headDim))
        {
            MustafarOptions nearest = ServedFormats.Nearest(on, dtype, headDim, options);
            Assert.That(ServedFormats.Serves(on, dtype, headDim, nearest), $"{options}");
            Assert.That(nearest == options, Is.EqualTo(ServedFormats.Serves(on, dtype, headDim, options)), $"{options}");
        }
    }

    private static IEnumerable<MustafarOptions> Options(int headDim)
    {
        MustafarOptions[] patterns = [.. s_patterns.Where(pattern => headDim % 64 == 0 || !pattern.BalancedKeys)];
        return
            from keys in patterns
            from values in patterns
            from keyBits in new[] { 16, 8, 4 }
            from valueBits in new[] { 16, 8, 4 }
            select keys with { ValueSparsity = values.KeySparsity, BalancedValues = values.BalancedKeys, KeyBits = keyBits, ValueBits = valueBits };
    }
}
