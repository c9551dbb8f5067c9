using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class AttentionTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    /// <summary>As exact as torch's own kernels of the type: at most twice their error on the same pruned keys and values.</summary>
    [Test]
    public void Error_is_at_most_twice_that_of_torch(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(64, 80, 96, 128, 256)] int headDim, [Values(1, 4, 7)] int group)
    {
        using var scope = NewDisposeScope();
        manual_seed(headDim + group);
        const int tokens = 333;
        int keep = headDim * 5 / 16;
        Tensor keys = randn(2, 2, tokens, headDim).to(dtype).to(device);
        Tensor values = randn(2, 2, tokens, headDim).to(dtype).to(device);
        Tensor query = randn(2, 2 * group, 1, headDim).to(dtype).to(device);
        (Tensor prunedKeys, Tensor prunedValues) = (ReferencePruning.Prune(keys, keep), ReferencePruning.Prune(values, keep));
        Tensor expected = ReferenceAttention.Attend(query, prunedKeys, prunedValues, 1 / Math.Sqrt(headDim), [tokens, tokens]);
        Tensor torchs = nn.functional.scaled_dot_product_attention(query.reshape(2, 2, group, headDim), prunedKeys, prunedValues)
            .reshape(query.shape);
        double bound = (2 * Compare.RelativeError(torchs, expected)) + 1e-6;
        TestDevices.ForEachVariant(device, variant =>
        {
            using BitmapTensor k = BitmapTensor.Compress(keys, keep);
            using BitmapTensor v = BitmapTensor.Compress(values, keep);
            double ours = Compare.RelativeError(MustafarOps.Attention(query, k, v), expected);
            Assert.That(ours, Is.LessThanOrEqualTo(bound), $"{variant} {dtype} {headDim} group {group}");
        });
    }

    [Test]
    public void Several_queries_of_sequences_of_different_length_see_their_own_past([ValueSource(nameof(DTypes))] ScalarType dtype)
    {
        double tolerance = dtype == ScalarType.Float32 ? 1e-5 : dtype == ScalarType.Float16 ? 2e-3 : 1.5e-2;
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(5);
            int[] lengths = [0, 1, 3, 32, 97, 150];
            Tensor keys = randn(6, 2, 150, 64).to(dtype).to(device);
            Tensor values = randn(6, 2, 150, 64).to(dtype).to(device);
            Tensor query = randn(6, 6, 3, 64).to(dtype).to(device);
            using BitmapTensor k = BitmapTensor.Compress(keys, 24);
            using BitmapTensor v = BitmapTensor.Compress(values, 40);
            Tensor expected = ReferenceAttention.Attend(query, ReferencePruning.Prune(keys, 24), ReferencePruning.Prune(values, 40), 0.3, lengths);
            Tensor actual = MustafarOps.Attention(query, k, v, 0.3, lengths);
            Compare.Close(actual, expected, tolerance, 2 * tolerance, variant);
        });
    }

    [Test]
    public void Masked_keys_and_values_serve_as_well()
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(6);
            Tensor keys = randn(1, 2, 70, 96, device: device), values = randn(1, 2, 70, 96, device: device);
            Tensor keyMask = rand(1, 2, 70, 96, device: device).gt(0.6), valueMask = rand(1, 2, 70, 96, device: device).gt(0.3);
            Tensor query = randn(1, 4, 1, 96, device: device);
            using BitmapTensor k = BitmapTensor.CompressMasked(keys, keyMask);
            using BitmapTensor v = BitmapTensor.CompressMasked(values, valueMask);
            Tensor expected = ReferenceAttention.Attend(
                query, where(keyMask, keys, zeros_like(keys)), where(valueMask, values, zeros_like(values)), 1 / Math.Sqrt(96), [70]);
            Compare.Close(MustafarOps.Attention(query, k, v), expected, 1e-5, 1e-5, variant);
        });
    }

    [Test]
    public void The_number_of_threads_does_not_matter()
    {
        using var scope = NewDisposeScope();
        manual_seed(7);
        int before = get_num_threads();
        Tensor x = randn(1, 1, 5000, 128, device: device);
        Tensor query = randn(1, 4, 1, 128, device: device);
        try
        {
            set_num_threads(1);
            using BitmapTensor one = BitmapTensor.Compress(x, 40);
            Tensor expected = MustafarOps.Attention(query, one, one).cpu().to(ScalarType.Float64);
            foreach (int threads in new[] { 2, 5 })
            {
                set_num_threads(threads);
                using BitmapTensor many = BitmapTensor.Compress(x, 40);
                Compare.Same(many.Decompress(), one.Decompress(), $"{threads} threads");
                Compare.Close(MustafarOps.Attention(query, many, many), expected, 1e-5, 1e-6, $"{threads} threads");
            }
        }
        finally
        {
            set_num_threads(before);
        }
    }

    [Test]
    public void A_large_score_does_not_overflow_and_a_NaN_shows()
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(8);
            Tensor keys = randn(1, 1, 1200, 64, device: device), values = randn(1, 1, 1200, 64, device: device);
            Tensor query = randn(1, 1, 1, 64, device: device).mul(1e4);
            using BitmapTensor k = BitmapTensor.Compress(keys, 64);
            using BitmapTensor v = BitmapTensor.Compress(values, 64);
            Compare.Close(
                MustafarOps.Attention(query, k, v), ReferenceAttention.Attend(query, keys, values, 0.125, [1200]), 1e-4, 1e-5, variant);
            keys[0, 0, 700, 5] = tensor(float.NaN, device: device);
            using BitmapTensor bad = BitmapTensor.Compress(keys, 10);
            Assert.That(Values.Of(MustafarOps.Attention(query, bad, v)), Is.All.NaN, variant);
        });
    }

    [Test]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(2, 2, 40, 64, device: device);
        using BitmapTensor k = BitmapTensor.Compress(x, 20);
        using BitmapTensor other = BitmapTensor.Compress(x.narrow(2, 0, 39), 20);
        Tensor query = randn(2, 4, 1, 64, device: device);
        Assert.Multiple(() =>
        {
            Assert.That(() => MustafarOps.Attention(query, k, other), Throws.ArgumentException.With.Message.Contains("39"));
            Assert.That(() => MustafarOps.Attention(query.narrow(1, 0, 3), k, k), Throws.ArgumentException.With.Property("ParamName").EqualTo("query"));
            Assert.That(() => MustafarOps.Attention(query.to(ScalarType.Float16), k, k), Throws.ArgumentException.With.Message.Contains("Float16"));
            Assert.That(() => MustafarOps.Attention(query, k, k, lengths: [41, 1]), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => MustafarOps.Attention(query, k, k, lengths: [1]), Throws.ArgumentException.With.Property("ParamName").EqualTo("lengths"));
            Assert.That(() => MustafarOps.Attention(query, k, k, scale: double.NaN), Throws.ArgumentException.With.Message.Contains("scale"));
        });
    }
}
