using Mustafar.Native;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

/// <summary>Tensors whose values are stored in 8 or 4 bits.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed unsafe class IntegerTests(string device)
{
    private const int Heads = 2;
    private const int Tokens = 83;

    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    private static readonly SparsityPattern[] Patterns =
        [SparsityPattern.All, SparsityPattern.Unstructured, SparsityPattern.BalancedKeys, SparsityPattern.BalancedValues];

    [Test]
    public void Decompressing_gives_what_the_format_says(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [ValueSource(nameof(Patterns))] SparsityPattern pattern, [Values(8, 4)] int bits, [Values] bool scaled)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(bits);
            Tensor x = Outliers(128).to(dtype);
            int keep = pattern == SparsityPattern.All ? 128 : 56;
            float[]? scales = scaled ? ReferenceIntegers.ChannelScales(x[0]) : null;
            Tensor mask = Mask(x, keep, pattern);
            using BitmapTensor compressed = BitmapTensor.Compress(x.to(device), keep, pattern, bits, Scales(scales, 128));
            Compare.Same(compressed.Decompress()[0], ReferenceIntegers.Stored(x[0], mask[0], bits, scales), $"{variant} {pattern}");
        });
    }

    [Test]
    public void Any_mask_serves([ValueSource(nameof(DTypes))] ScalarType dtype, [Values(64, 80)] int headDim, [Values(8, 4)] int bits)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(headDim);
            Tensor x = Outliers(headDim).to(dtype);
            // Each row has its own density; some rows are empty, some full.
            Tensor mask = rand(1, Heads, Tokens, headDim).lt(rand(1, Heads, Tokens, 1).mul(1.6).sub(0.3));
            float[] scales = ReferenceIntegers.ChannelScales(x[0]);
            using BitmapTensor compressed = BitmapTensor.CompressMasked(x.to(device), mask.to(device), bits, Scales(scales, headDim));
            Compare.Same(compressed.Decompress()[0], ReferenceIntegers.Stored(x[0], mask[0], bits, scales), variant);
        });
    }

    [Test]
    public void Channel_scales_are_as_the_format_says(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype, [Values(64, 96, 256)] int headDim)
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        Tensor x = Outliers(headDim).to(dtype);
        (x[0, 0, 3, 5], x[0, 0, 4, 6], x[0, 1, 5, 7]) = (tensor(float.NaN, dtype), tensor(float.NegativeInfinity, dtype), tensor(3e4f, dtype));
        x[TensorIndex.Ellipsis, 9] = 0;
        Tensor scales = MustafarOps.KeyChannelScales(x.to(device));
        Assert.That(scales.shape, Is.EqualTo(new long[] { 1, Heads, headDim }));
        Assert.That(Values.Of(scales), Is.EqualTo(ReferenceIntegers.ChannelScales(x[0])));
    }

    /// <summary>Keys and values in formats of their own, against double precision over the same numbers.</summary>
    [Test]
    public void Products_and_attention_agree_with_dense_ones(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [ValueSource(nameof(Patterns))] SparsityPattern pattern, [Values(8, 4)] int bits)
    {
        const int headDim = 64, group = 3;
        double tolerance = dtype == ScalarType.Float32 ? 2e-5 : dtype == ScalarType.Float16 ? 2e-3 : 1.5e-2;
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(bits);
            (Tensor x, Tensor y) = (Outliers(headDim).to(dtype), randn(1, Heads, Tokens, headDim).to(dtype));
            Tensor query = randn(1, Heads * group, 2, headDim).to(dtype), weights = rand(1, Heads * group, 2, Tokens);
            int keep = pattern == SparsityPattern.All ? headDim : headDim * 3 / 8;
            float[] scales = ReferenceIntegers.ChannelScales(x[0]);
            using BitmapTensor keys = BitmapTensor.Compress(x.to(device), keep, pattern, bits, Scales(scales, headDim));
            using BitmapTensor values = BitmapTensor.Compress(y.to(device), headDim, SparsityPattern.All, 12 - bits);
            Tensor denseKeys = ReferenceIntegers.Stored(x.to(ScalarType.Float32)[0], Mask(x, keep, pattern)[0], bits, scales).unsqueeze(0).to(ScalarType.Float64);
            Tensor denseValues = ReferenceIntegers.Stored(y.to(ScalarType.Float32)[0], ones_like(y, dtype: ScalarType.Bool)[0], 12 - bits).unsqueeze(0).to(ScalarType.Float64);
            Tensor scores = matmul(query.to(ScalarType.Float64), denseKeys.repeat_interleave(group, 1).transpose(2, 3)).mul(0.5);
            Tensor sums = matmul(weights.to(ScalarType.Float64), denseValues.repeat_interleave(group, 1)).mul(0.5);
            Assert.That(Compare.RelativeError(keys.KeyScores(query.to(device), 0.5), scores), Is.LessThan(tolerance), $"scores, {variant}");
            Assert.That(Compare.RelativeError(values.ValueSum(weights.to(device), 0.5), sums), Is.LessThan(tolerance), $"sums, {variant}");
            Tensor expected = ReferenceAttention.Attend(query, denseKeys, denseValues, 0.1, [Tokens]);
            Assert.That(
                Compare.RelativeError(MustafarOps.Attention(query.to(device), keys, values, 0.1), expected), Is.LessThan(2 * tolerance), $"attention, {variant}");
        });
    }

    /// <summary>The worked example of docs/format.md.</summary>
    [Test]
    public void A_block_is_what_the_documentation_shows()
    {
        using var scope = NewDisposeScope();
        Tensor x = zeros(1, 1, 2, 64);
        foreach ((int token, int channel, float value) in new[]
        {
            (0, 3, 1.75f), (0, 10, -0.5f), (0, 20, 0.25f), (0, 40, 0.8f), (0, 63, -3.5f), (1, 0, 0.1f), (1, 1, 0.1f), (1, 2, 0.1f), (1, 3, 0.1f),
        })
        {
            x[0, 0, token, channel] = value;
        }

        using BitmapTensor tensor = BitmapTensor.Compress(x, 4, SparsityPattern.Unstructured, bits: 4);
        byte[] block = new byte[384];
        foreach ((int start, string hexadecimal) in new[] { (0, "0804000000010080"), (8, "0F00000000000000"), (256, "94F27777"), (320, "00385023") })
        {
            Convert.FromHexString(hexadecimal).CopyTo(block, start);
        }

        Assert.That(LayerFormat.BlockBytes(tensor.Native.Format), Is.EqualTo(block.Length));
        Assert.That(new Span<byte>(tensor.Native.Slabs[0], block.Length).ToArray(), Is.EqualTo(block));
        Assert.That((tensor.Bits, tensor.Bytes), Is.EqualTo((4, block.Length + NativeConstants.PagePadding)));
    }

    [Test]
    public void A_row_with_a_number_that_is_none_reads_as_such_where_it_is_kept()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(1, 1, 4, 64);
        (x[0, 0, 1, 3], x[0, 0, 2, 5]) = (tensor(float.NaN), tensor(float.PositiveInfinity));
        using BitmapTensor compressed = BitmapTensor.Compress(x.to(device), 64, SparsityPattern.All, bits: 8);
        Compare.Same(compressed.Decompress()[0], ReferenceIntegers.Stored(x[0], ones_like(x, dtype: ScalarType.Bool)[0], 8), "NaN");
    }

    [Test]
    public void What_makes_no_sense_is_refused()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(2, Heads, 40, 64), scales = MustafarOps.KeyChannelScales(x);
        using BitmapTensor keys = BitmapTensor.Compress(x, 64, SparsityPattern.All, 8, scales), values = BitmapTensor.Compress(x, 64, SparsityPattern.All, 4);
        Assert.Multiple(() =>
        {
            Assert.That(() => BitmapTensor.Compress(x, 20, bits: 5), Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("bits"));
            Assert.That(() => BitmapTensor.Compress(x, 20, channelScales: scales), Throws.ArgumentException.With.Message.Contains("only integers"));
            Assert.That(() => BitmapTensor.Compress(x, 20, bits: 8, channelScales: scales[0]), Throws.ArgumentException.With.Message.Contains("[2, 2, 64]"));
            Assert.That(() => BitmapTensor.Compress(x, 20, SparsityPattern.All), Throws.TypeOf<ArgumentOutOfRangeException>().With.Message.Contains("64 channels"));
            Assert.That(() => keys.ValueSum(rand(2, 2, 1, 40)), Throws.InvalidOperationException.With.Message.Contains("channel scales"));
            Assert.That(() => MustafarOps.Attention(x, values, keys), Throws.ArgumentException.With.Property("ParamName").EqualTo("values"));
            Assert.That(() => MustafarOps.KeyChannelScales(x[0]), Throws.ArgumentException.With.Property("ParamName").EqualTo("keys"));
        });
    }

    // A few channels are large in all tokens, as those of large models' keys are.
    private static Tensor Outliers(int headDim)
    {
        Tensor x = randn(1, Heads, Tokens, headDim);
        x[TensorIndex.Ellipsis, TensorIndex.Slice(2, 6)] *= 20;
        return x;
    }

    private static Tensor Mask(Tensor x, int keep, SparsityPattern pattern) => pattern == SparsityPattern.All
        ? ones_like(x, dtype: ScalarType.Bool)
        : ReferencePruning.Mask(x, keep, pattern);

    private Tensor? Scales(float[]? scales, int headDim) => scales is null ? null : tensor(scales).reshape(1, Heads, headDim).to(device);
}
