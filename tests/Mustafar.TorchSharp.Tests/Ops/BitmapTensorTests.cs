using Mustafar.Native;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class BitmapTensorTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    [Test]
    public void Compress_and_decompress_give_the_pruned_tensor(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(64, 80, 96, 128, 256)] int headDim, [Values(1, 31, 32, 33, 113)] int tokens)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(tokens);
            int keep = 1 + ((headDim * tokens) % headDim);
            Tensor x = randn(2, 3, tokens, headDim).to(dtype).to(device);
            using BitmapTensor compressed = BitmapTensor.Compress(x, keep);
            Compare.Same(compressed.Decompress(), ReferencePruning.Prune(x, keep), $"{variant} {dtype} keep {keep}");
        });
    }

    [Test]
    public void Any_mask_survives([ValueSource(nameof(DTypes))] ScalarType dtype, [Values(64, 80, 96, 128, 256)] int headDim) =>
        TestDevices.ForEachVariant(device, variant => CheckMask(dtype, headDim, tokens: 75, variant));

    /// <summary>On CUDA the offsets of so many blocks are summed in several rounds.</summary>
    [TestCase(1)]
    [TestCase(9000)]
    public void So_does_one_of_few_or_many_tokens(int tokens) =>
        TestDevices.ForEachVariant(device, variant => CheckMask(ScalarType.Float16, headDim: 96, tokens, variant));

    [Test]
    public void Bytes_are_those_of_the_format()
    {
        using var scope = NewDisposeScope();
        using BitmapTensor compressed = BitmapTensor.Compress(randn(1, 8, 4096, 128, dtype: ScalarType.Float16, device: device), 40);
        Assert.That(compressed.Bytes, Is.EqualTo((8 * 128 * (512 + (64 * 40))) + NativeConstants.PagePadding));
        Assert.That(compressed.DenseBytes, Is.EqualTo(8 * 4096 * 128 * 2));
    }

    [Test]
    public void Products_agree_with_dense_ones(
        [ValueSource(nameof(DTypes))] ScalarType dtype,
        [Values(64, 80, 128, 256)] int headDim,
        [Values(1, 3, 8, 12)] int group,
        [Values] bool masked)
    {
        double tolerance = dtype == ScalarType.Float32 ? 1e-5 : dtype == ScalarType.Float16 ? 2e-3 : 1.5e-2;
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(group);
            const int tokens = 83;
            Tensor x = randn(2, 2, tokens, headDim).to(dtype).to(device);
            Tensor query = randn(2, 2 * group, 2, headDim).to(dtype).to(device);
            Tensor weights = rand(2, 2 * group, 2, tokens, device: device);
            Tensor mask = (masked ? rand(x.shape).lt(0.4) : ReferencePruning.Mask(x, headDim / 3)).to(device);
            using BitmapTensor compressed = masked ? BitmapTensor.CompressMasked(x, mask) : BitmapTensor.Compress(x, headDim / 3);
            Tensor dense = where(mask, x, zeros_like(x)).cpu().to(ScalarType.Float64).repeat_interleave(group, 1);
            Tensor scores = matmul(query.cpu().to(ScalarType.Float64), dense.transpose(2, 3)).mul(0.5);
            Tensor sums = matmul(weights.cpu().to(ScalarType.Float64), dense).mul(0.5);
            Assert.That(Compare.RelativeError(compressed.KeyScores(query, 0.5), scores), Is.LessThan(tolerance), $"scores, {variant}");
            Assert.That(Compare.RelativeError(compressed.ValueSum(weights, 0.5), sums), Is.LessThan(tolerance), $"sums, {variant}");
        });
    }

    [Test]
    public void Damaged_data_is_refused()
    {
        if (device != "cpu")
        {
            Assert.Ignore("Only the CPU reads the data on the host, where it can refuse it; kernels stay inside their block.");
        }

        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            Tensor x = randn(1, 1, 64, 128);
            using BitmapTensor compressed = BitmapTensor.Compress(x, 40);
            Tensor query = randn(1, 1, 1, 128);
            Overwrite(compressed, 0, 512, 0xff);
            Assert.That(() => compressed.Decompress(), Throws.TypeOf<InvalidDataException>().With.Message.Contains("bitmap"), variant);
            Assert.That(() => compressed.KeyScores(query), Throws.TypeOf<InvalidDataException>(), variant);
            Assert.That(() => MustafarOps.Attention(query, compressed, compressed), Throws.TypeOf<InvalidDataException>(), variant);

            using BitmapTensor masked = BitmapTensor.CompressMasked(x, rand(1, 1, 64, 128).gt(0.5));
            OverwriteOffsets(masked, uint.MaxValue);
            Assert.That(() => masked.Decompress(), Throws.TypeOf<InvalidDataException>().With.Message.Contains("offsets"), variant);
        });
    }

    [Test]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(2, 2, 40, 64, device: device);
        BitmapTensor compressed = BitmapTensor.Compress(x, 20);
        Assert.Multiple(() =>
        {
            Assert.That(() => BitmapTensor.CompressMasked(x, x), Throws.ArgumentException.With.Property("ParamName").EqualTo("mask"));
            Assert.That(() => BitmapTensor.CompressMasked(x, x[0] > 0), Throws.ArgumentException.With.Message.Contains("[2, 40, 64]"));
            Assert.That(() => compressed.KeyScores(x.to(ScalarType.Float16)), Throws.ArgumentException.With.Message.Contains("Float16"));
            Assert.That(() => compressed.KeyScores(randn(2, 3, 1, 64, device: device)), Throws.ArgumentException.With.Message.Contains("multiple of 2"));
            Assert.That(() => compressed.ValueSum(randn(2, 2, 1, 41, device: device)), Throws.ArgumentException.With.Message.Contains("40"));
        });
        compressed.Dispose();
        compressed.Dispose();
        Assert.That(() => compressed.Decompress(), Throws.TypeOf<ObjectDisposedException>());
        Assert.That(() => compressed.KeyScores(x), Throws.TypeOf<ObjectDisposedException>());
    }

    /// <summary>Threads that read it finish their calls, and find it disposed at the next.</summary>
    [Test]
    public void Disposing_waits_for_the_calls_of_other_threads()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(1, 2, 200, 64).to(device);
        for (int i = 0; i < 20; i++)
        {
            BitmapTensor compressed = BitmapTensor.Compress(x, 30);
            using CountdownEvent started = new(2);
            Task[] readers = [Reader(() => compressed.Decompress()), Reader(() => MustafarOps.Attention(x, compressed, compressed))];
            started.Wait();
            Parallel.Invoke(compressed.Dispose, compressed.Dispose);
            foreach (Task reader in readers)
            {
                Assert.That(async () => await reader, Throws.TypeOf<ObjectDisposedException>());
            }

            Task Reader(Func<Tensor> call) => Task.Run(() =>
            {
                call().Dispose();
                started.Signal();
                while (true)
                {
                    call().Dispose();
                }
            });
        }
    }

    private void CheckMask(ScalarType dtype, int headDim, int tokens, string variant)
    {
        using var scope = NewDisposeScope();
        manual_seed(headDim);
        const int Blocks = NativeConstants.BlockTokens;
        Tensor x = randn(2, 2, tokens, headDim).to(dtype).to(device);
        // Each row has its own density; some rows are empty, some full.
        Tensor mask = rand(2, 2, tokens, headDim).lt(rand(2, 2, tokens, 1).mul(1.6).sub(0.3));
        using BitmapTensor compressed = BitmapTensor.CompressMasked(x, mask.to(device));
        Compare.Same(compressed.Decompress(), where(mask.to(device), x, zeros_like(x)), $"{variant} {dtype}");

        // Each block is a bitmap and its values, in units of 16 bytes; each has an offset, and so has the end.
        long blocks = (tokens + Blocks - 1) / Blocks, bitmapBytes = 128 * ((headDim + 31) / 32);
        long elementBytes = dtype == ScalarType.Float32 ? 4 : 2;
        Tensor kept = nn.functional.pad(mask.to(ScalarType.Int64), (0, 0, 0, (blocks * Blocks) - tokens)).reshape(4 * blocks, -1).sum(1);
        long units = kept.data<long>().Sum(count => (bitmapBytes + (count * elementBytes) + 15) / 16);
        Assert.That(compressed.Bytes, Is.EqualTo((16 * units) + NativeConstants.PagePadding + (((4 * blocks) + 1) * sizeof(uint))));
    }

    private static unsafe void Overwrite(BitmapTensor tensor, int start, int count, byte value) =>
        new Span<byte>((byte*)tensor.Native.Slabs[0] + start, count).Fill(value);

    private static unsafe void OverwriteOffsets(BitmapTensor tensor, uint value) => tensor.Native.Offsets[1] = value;
}
