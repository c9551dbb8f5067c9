using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>The step of decoding in each instruction set and type: as exact as torch's attention, and the same pages from all.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class VariantTests(string device)
{
    /// <summary>Compressed tokens, a dense window and a token of its own: at most twice the error of torch's kernel of the type.</summary>
    [Test]
    public void A_step_is_as_exact_as_torchs(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype,
        [Values(64, 80, 96, 128, 256)] int headDim,
        [Values(1, 3, 8)] int group,
        [Values(1, 4)] int count)
    {
        MustafarOptions options = new() { KeySparsity = 0.5, ValueSparsity = 0.7, LocalWindow = 50, GroupSize = 64 };
        const int past = 700;
        using var scope = NewDisposeScope();
        manual_seed(headDim + group);
        Tensor keys = randn(1, 2, past, headDim).to(dtype).to(device);
        Tensor values = randn(1, 2, past, headDim).to(dtype).to(device);
        Tensor query = randn(1, 2 * group, count, headDim).to(dtype).to(device);
        Tensor newKeys = randn(1, 2, count, headDim).to(dtype).to(device);
        Tensor newValues = randn(1, 2, count, headDim).to(dtype).to(device);
        Tensor storedKeys = Stored(keys, newKeys, options.KeysKept(headDim));
        Tensor storedValues = Stored(values, newValues, options.ValuesKept(headDim));
        Tensor expected = ReferenceAttention.Attend(query, storedKeys, storedValues, 1 / Math.Sqrt(headDim), [past + count]);
        double bound = (2 * Compare.RelativeError(Causal(query, storedKeys, storedValues), expected)) + 1e-6;
        TestDevices.ForEachVariant(device, variant =>
        {
            using MustafarCache cache = new(1, new() { NumKvHeads = 2, HeadDim = headDim }, dtype, new Device(device), options);
            cache.Append(keys, values);
            Assert.That(Compare.RelativeError(cache.Forward(query, newKeys, newValues), expected), Is.LessThanOrEqualTo(bound), variant);
        });

        Tensor Stored(Tensor tokens, Tensor last, int keep)
        {
            int compressed = ReferenceCache.Rule(past + 1, options);
            Assert.That(compressed, Is.EqualTo(640));
            Tensor pruned = ReferencePruning.Prune(tokens.narrow(2, 0, compressed), keep);
            return cat([pruned, tokens.narrow(2, compressed, past - compressed), last], 2);
        }

        Tensor Causal(Tensor query, Tensor keys, Tensor values)
        {
            Tensor seen = ones(count, past + count, dtype: ScalarType.Bool, device: device).tril(past);
            return nn.functional.scaled_dot_product_attention(
                query, keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1), seen);
        }
    }

    /// <summary>What one instruction set has written another one reads.</summary>
    [TestCase(ScalarType.Float32, 128)]
    [TestCase(ScalarType.Float16, 80)]
    [TestCase(ScalarType.BFloat16, 96)]
    public void All_write_the_same_pages(ScalarType dtype, int headDim)
    {
        using var scope = NewDisposeScope();
        manual_seed(headDim);
        Tensor keys = randn(2, 2, 500, headDim).to(dtype).to(device);
        Tensor values = randn(2, 2, 500, headDim).to(dtype).to(device);
        Tensor query = randn(2, 4, 1, headDim).to(dtype).to(device);
        Tensor? expected = null;
        TestDevices.ForEachVariant(device, variant => Written(variant));

        void Written(string variant)
        {
            using MustafarCache cache = new(2, new() { NumKvHeads = 2, HeadDim = headDim }, dtype, new Device(device));
            cache.Append(keys.narrow(2, 0, 300), values.narrow(2, 0, 300));
            for (int token = 300; token < 500; token++)
            {
                cache.Append(keys.narrow(2, token, 1), values.narrow(2, token, 1));
            }

            // Read by one and the same instruction set.
            Mustafar.Native.TensorAccess.ForcedVariant = null;
            Tensor output = cache.Attend(query);
            expected ??= output;
            Compare.Same(output, expected, variant);
        }
    }
}
