using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Keys of each kind beside values of each kind.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class FormatPairTests(string device)
{
    // Channels to prune, whether in a balanced pattern, and bits. On CUDA each is read in its own way.
    private static readonly (double Sparsity, bool Balanced, int Bits)[] s_kinds =
        [(0, false, 16), (0.7, false, 16), (0.6, true, 16), (0, false, 8), (0.5, true, 4), (0.7, false, 4)];

    private static IEnumerable<TestCaseData> Keys =>
        from keys in s_kinds
        from headDim in (int[])[64, 128]
        from dtype in (ScalarType[])[ScalarType.Float16, ScalarType.BFloat16]
        select new TestCaseData(keys.Sparsity, keys.Balanced, keys.Bits, headDim, dtype);

    /// <summary>Steps of 1 to 8 tokens give what a plain model gives, on the fast kernels.</summary>
    [TestCaseSource(nameof(Keys))]
    public void BesideValuesOfEachKind(double sparsity, bool balanced, int bits, int headDim, ScalarType dtype)
    {
        Random random = new(headDim + bits);
        // The CPU reads keys and values of all kinds by the same code: a third of the pairs will do.
        int step = device == "cpu" ? 3 : 1;
        for (int i = random.Next(step); i < s_kinds.Length; i += step)
        {
            (double Sparsity, bool Balanced, int Bits) values = s_kinds[i];
            MustafarOptions options = new()
            {
                KeySparsity = sparsity,
                BalancedKeys = balanced,
                KeyBits = bits,
                KeyChannelScales = bits < 16 && random.Next(2) == 0,
                KeyRotation = bits < 16 && sparsity == 0 && random.Next(2) == 0,
                ValueSparsity = values.Sparsity,
                BalancedValues = values.Balanced,
                ValueBits = values.Bits,
                GroupSize = 32 * random.Next(1, 3),
                SlidingWindow = random.Next(4) == 0 ? 50 : null,
            };
            Check(options, headDim, dtype, 1 << random.Next(4), random);
        }
    }

    private void Check(MustafarOptions options, int headDim, ScalarType dtype, int group, Random random)
    {
        string what = $"{options}, head_dim {headDim}, {group} heads per KV head";
        using var scope = NewDisposeScope();
        manual_seed(random.Next());
        KeyValueShape shape = new() { NumKvHeads = 2, HeadDim = headDim };
        using MustafarCache cache = new(2, shape, dtype, new Device(device), options);
        ReferenceCache reference = new(2, options, headDim);
        CacheShape checkedShape = CacheShape.Checked(shape, dtype, new Device(device));
        Assert.That(new LayerFormat(checkedShape, options).HasFastKernels(checkedShape), what);
        Step(150, [150, random.Next(151)]);
        foreach (int count in (int[])[1, 3, 8])
        {
            Step(count, [count, random.Next(count + 1)]);
        }

        void Step(int count, int[] counts)
        {
            Tensor query = randn(2, 2 * group, count, headDim).to(dtype), keys = randn(2, 2, count, headDim).to(dtype), values = randn(2, 2, count, headDim).to(dtype);
            Tensor actual = cache.Forward(query.to(device), keys.to(device), values.to(device), 0.1, counts);
            double error = Compare.RelativeError(actual, reference.Forward(query, keys, values, 0.1, counts));
            Assert.That(error, Is.LessThan(dtype == ScalarType.Float16 ? 2e-3 : 1.5e-2), what);
        }
    }
}
