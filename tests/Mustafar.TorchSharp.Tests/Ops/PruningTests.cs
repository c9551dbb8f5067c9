using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class PruningTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    private static readonly string[] Kinds = ["random", "ties", "special values", "subnormal", "huge", "signed zeros", "same channels"];

    [Test]
    public void Random_rows_keep_what_sorting_keeps([ValueSource(nameof(DTypes))] ScalarType dtype, [Values(64, 80, 96, 128, 256)] int headDim)
    {
        Random random = new(headDim);
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            foreach (int keep in new[] { 1, random.Next(2, headDim), headDim - 1, headDim })
            {
                manual_seed(keep);
                Tensor x = randn(2, 3, 37, headDim).to(dtype).to(device);
                Compare.Same(MustafarOps.PruneMask(x, keep), ReferencePruning.Mask(x, keep), $"{variant} {dtype} {headDim} keep {keep}");
            }
        });
    }

    /// <summary>By their magnitudes and by those times an importance: the mask, and what is compressed.</summary>
    [Test]
    public void Rows_of_any_kind_keep_what_sorting_keeps(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [ValueSource(nameof(Kinds))] string kind, [Values] bool weighted)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(4);
            foreach ((int headDim, int keep) in ((int, int)[])[(128, 40), (64, 20), (80, 33), (96, 7), (256, 77)])
            {
                Tensor x = Rows(kind, dtype, 2, 2, 37, headDim).to(device);
                Tensor? importance = weighted ? Importance(2, 2, headDim) : null;
                Tensor mask = ReferencePruning.Mask(Weighted(x, importance), keep);
                string what = $"{variant} {dtype} {kind} {headDim} keep {keep}";
                Compare.Same(MustafarOps.PruneMask(x, keep, importance: importance), mask, what);
                using BitmapTensor compressed = BitmapTensor.Compress(x, keep, importance: importance);
                Compare.Same(compressed.Decompress(), where(mask.to(device), x, zeros_like(x)), what);
            }
        });
    }

    [Test]
    public void Balanced_patterns_keep_the_largest_that_their_groups_allow(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(64, 128, 256)] int headDim, [Values(5, 6, 7, 8)] int ofSixteen)
    {
        using var scope = NewDisposeScope();
        manual_seed(headDim + ofSixteen);
        int keep = headDim / 16 * ofSixteen;
        foreach ((string kind, bool weighted) in from kind in Kinds from weighted in (bool[])[false, true] select (kind, weighted))
        {
            Tensor x = Rows(kind, dtype, 1, 2, 37, headDim).to(device);
            Tensor? importance = weighted ? Importance(1, 2, headDim) : null;
            foreach (SparsityPattern pattern in new[] { SparsityPattern.BalancedKeys, SparsityPattern.BalancedValues })
            {
                Tensor mask = ReferencePruning.Mask(Weighted(x, importance), keep, pattern);
                string what = $"{kind} {pattern} {dtype} {headDim} keep {keep} weighted {weighted}";
                Compare.Same(MustafarOps.PruneMask(x, keep, pattern, importance), mask, what);
                using BitmapTensor compressed = BitmapTensor.Compress(x, keep, pattern, importance: importance);
                Compare.Same(compressed.Decompress(), where(mask.to(device), x, zeros_like(x)), what);
            }
        }
    }

    [Test]
    public void Ties_go_to_the_lower_channel([ValueSource(nameof(DTypes))] ScalarType dtype)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(1);
            // Few distinct magnitudes, both signs.
            Tensor x = randint(-2, 3, [1, 2, 64, 128]).to(dtype).to(device);
            foreach (int keep in new[] { 1, 31, 32, 33, 40, 64, 100 })
            {
                Compare.Same(MustafarOps.PruneMask(x, keep), ReferencePruning.Mask(x, keep), $"{variant} {dtype} keep {keep}");
            }

            Tensor zero = zeros(1, 1, 1, 128, dtype: dtype, device: device);
            Assert.That(Values.Of(MustafarOps.PruneMask(zero, 40)), Is.EqualTo(Enumerable.Range(0, 128).Select(c => c < 40 ? 1f : 0f)));
        });
    }

    [Test]
    public void NaN_comes_before_infinity_and_infinity_before_numbers([ValueSource(nameof(DTypes))] ScalarType dtype)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            using var scope = NewDisposeScope();
            manual_seed(2);
            Tensor x = randn(1, 1, 8, 128);
            foreach ((int channel, float value) in new[] { (3, float.PositiveInfinity), (70, float.NegativeInfinity), (9, float.NaN), (127, -float.NaN) })
            {
                x[0, 0, TensorIndex.Colon, channel] = tensor(value);
            }

            x = x.to(dtype).to(device);
            foreach (int keep in new[] { 1, 2, 3, 4, 5, 64 })
            {
                Compare.Same(MustafarOps.PruneMask(x, keep), ReferencePruning.Mask(x, keep), $"{variant} {dtype} keep {keep}");
            }
        });
    }

    [Test]
    public void Prune_zeroes_the_rest_of_any_view()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        Tensor x = randn(2, 50, 3, 96, device: device).transpose(1, 2);
        Compare.Same(MustafarOps.Prune(x, 30), ReferencePruning.Prune(x, 30), "transposed");
        Tensor columns = randn(2, 3, 64, 50, device: device).transpose(2, 3);
        Compare.Same(MustafarOps.Prune(columns, 30), ReferencePruning.Prune(columns, 30), "rows that are not contiguous");
        Tensor expanded = randn(1, 1, 5, 64, device: device).expand(2, 3, 5, 64);
        Compare.Same(MustafarOps.Prune(expanded, 30), ReferencePruning.Prune(expanded, 30), "expanded");
    }

    [Test]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(1, 2, 3, 64, device: device);
        Assert.Multiple(() =>
        {
            Assert.That(() => MustafarOps.PruneMask(x, 0), Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("kept"));
            Assert.That(() => MustafarOps.PruneMask(x, 65), Throws.TypeOf<ArgumentOutOfRangeException>().With.Message.Contains("64"));
            Assert.That(() => MustafarOps.PruneMask(x[0], 4), Throws.ArgumentException.With.Message.Contains("[2, 3, 64]"));
            Assert.That(() => MustafarOps.PruneMask(x.to(ScalarType.Float64), 4), Throws.ArgumentException.With.Message.Contains("Float64"));
            Assert.That(() => MustafarOps.PruneMask(x.narrow(3, 0, 48), 4), Throws.TypeOf<NotSupportedException>().With.Message.Contains("48"));
            Assert.That(() => MustafarOps.PruneMask(null!, 4), Throws.ArgumentNullException);
            Assert.That(() => MustafarOps.PruneMask(x, 20, (SparsityPattern)9), Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo("pattern"));
            Assert.That(() => MustafarOps.PruneMask(x, 21, SparsityPattern.BalancedKeys), Throws.TypeOf<NotSupportedException>().With.Message.Contains("21"));
            Assert.That(() => MustafarOps.PruneMask(randn(1, 1, 3, 80, device: device), 40, SparsityPattern.BalancedKeys), Throws.TypeOf<NotSupportedException>().With.Message.Contains("80"));
        });
    }

    private static Tensor Rows(string kind, ScalarType dtype, params long[] shape)
    {
        bool isHalf = dtype == ScalarType.Float16;
        Tensor x = randn(shape), uniform = rand(shape);
        return (kind switch
        {
            "ties" => (2 * x).round(),
            "special values" => where(uniform < 0.05, tensor(float.NaN), where(uniform < 0.1, tensor(float.NegativeInfinity),
                where(uniform < 0.15, tensor(float.PositiveInfinity), where(uniform < 0.35, tensor(-0f), x)))),
            "subnormal" => x * (isHalf ? 3e-7 : 1e-39),
            "huge" => x * (isHalf ? 2e4 : 1e38),
            "signed zeros" => where(uniform < 0.9, 0 * x, x),
            "same channels" => x + (100 * (arange(shape[^1]) % 8).eq(3)),
            _ => x,
        }).to(dtype);
    }

    // Of several octaves; zeros, equal ones, negative ones and infinities among them.
    private Tensor Importance(params long[] shape)
    {
        Tensor choice = randint(0, 32, shape), special = tensor([0f, 1f, 1f, 1e-30f, 1e30f, -2f, float.PositiveInfinity, 1f]);
        return where(choice < 8, special[choice.clamp(max: 7)], 8 * rand(shape)).to(device);
    }

    private static Tensor Weighted(Tensor x, Tensor? importance) =>
        importance is null ? x : x.to(ScalarType.Float32) * importance.unsqueeze(2);
}
