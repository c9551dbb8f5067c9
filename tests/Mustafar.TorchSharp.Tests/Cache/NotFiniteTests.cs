using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>
/// NaN and infinity in any operand give what softmax(scale · q · kᵀ) · v, written out in double precision over the decompressed tokens
/// that a query sees, gives: in each operation, instruction set and type, over generated cases.
/// </summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class NotFiniteTests(string device)
{
    private const int Cases = 16;
    private const int HeadDim = 64;
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = HeadDim };

    private static readonly float[] Specials = [float.NaN, float.PositiveInfinity, float.NegativeInfinity];

    private static double Tolerance(ScalarType dtype) => dtype == ScalarType.Float32 ? 1e-4 : dtype == ScalarType.Float16 ? 4e-3 : 3e-2;

    /// <summary>
    /// A compressed cache: compressed tokens, the window, and 1 to 40 new tokens; sinks and a sliding window in some. On CUDA up to 8 new
    /// tokens, and values that all queries see: torch's kernels take more, and whole blocks meet a weight of zero.
    /// </summary>
    [Test]
    public void A_compressed_cache_gives_what_the_formula_gives(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype, [Values] bool balanced)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            for (int seed = 0; seed < Cases; seed++)
            {
                Random random = new(seed);
                MustafarOptions options = new()
                {
                    BalancedKeys = balanced,
                    BalancedValues = balanced,
                    KeySparsity = 0.5,
                    ValueSparsity = 0.6,
                    GroupSize = 32,
                    LocalWindow = random.Next(40),
                    SinkTokens = random.Next(3) == 0 ? 4 : 0,
                    SlidingWindow = random.Next(3) == 0 ? random.Next(50, 120) : null,
                };
                using MustafarCache cache = new(1, s_shape, dtype, new Device(device), options);
                ReferenceCache reference = new(1, options, HeadDim);
                Run(random, dtype, cache, (query, keys, values) => reference.Forward(query, keys, values, 0.125, [(int)keys.size(2)]),
                    $"{variant} seed {seed} {options}", options.SlidingWindow is null);
            }
        });
    }

    /// <summary>A dense cache. On CUDA torch's kernels decide.</summary>
    [Test]
    public void A_dense_cache_gives_what_the_formula_gives(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype)
    {
        OnlyOnTheCpu("torch's CUDA kernels are used as they are.");
        for (int seed = 0; seed < 2 * Cases; seed++)
        {
            Random random = new(seed);
            int? window = random.Next(3) == 0 ? random.Next(5, 120) : null;
            using DenseCache cache = new(1, s_shape, dtype, slidingWindow: window);
            (Tensor? allKeys, Tensor? allValues) = (null, null);
            Run(random, dtype, cache, Forward, $"seed {seed}, window {window}");

            Tensor Forward(Tensor query, Tensor keys, Tensor values)
            {
                allKeys = allKeys is null ? keys : cat([allKeys, keys], 2);
                allValues = allValues is null ? values : cat([allValues, values], 2);
                return ReferenceAttention.Attend(query[0], allKeys[0], allValues[0], 0.125, window).unsqueeze(0);
            }
        }
    }

    /// <summary>Once what was not finite is gone, a dense cache is as before.</summary>
    [Test]
    public void A_dense_cache_forgets_what_was_not_finite()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using DenseCache cache = new(1, new() { NumKvHeads = 1, HeadDim = HeadDim }, ScalarType.Float32, new Device(device));
        Tensor keys = randn(1, 1, 20, HeadDim, device: device), values = randn(1, 1, 20, HeadDim, device: device);
        Tensor query = randn(1, 1, 1, HeadDim, device: device), bad = full_like(query, float.NaN);
        cache.Forward(keys, keys, values, 0.125);
        Assert.That(Values.Of(cache.Forward(query, bad, bad, 0.125)), Is.All.NaN);
        cache.Truncate(20);
        Tensor expected = ReferenceAttention.Attend(query[0], cat([keys, query], 2)[0], cat([values, query], 2)[0], 0.125).unsqueeze(0);
        Compare.Close(cache.Forward(query, query, query, 0.125), expected, 1e-5, 1e-5, "afterwards");
    }

    /// <summary>The two products over compressed tokens, whose pruned channels are zeros.</summary>
    [Test]
    public void Products_give_what_the_formula_gives(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype, [Values] bool balanced)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            for (int seed = 0; seed < Cases; seed++)
            {
                using var scope = NewDisposeScope();
                Random random = new(seed);
                manual_seed(seed);
                int tokens = random.Next(1, 100), queries = random.Next(1, 9);
                Tensor stored = Number(2, tokens, dtype), query = Number(4, queries, dtype), weights = rand(1, 4, queries, tokens, device: device);
                foreach (Tensor operand in new[] { stored, query, weights })
                {
                    if (random.Next(2) == 0)
                    {
                        Plant(random, operand);
                    }
                }

                using BitmapTensor keys = BitmapTensor.Compress(stored, 32, balanced ? SparsityPattern.BalancedKeys : SparsityPattern.Unstructured);
                using BitmapTensor values = BitmapTensor.Compress(stored, 32, balanced ? SparsityPattern.BalancedValues : SparsityPattern.Unstructured);
                double tolerance = Tolerance(dtype);
                Compare.Close(keys.KeyScores(query, 0.125),
                    Product(query, keys.Decompress().transpose(2, 3)).mul(0.125), tolerance, tolerance, $"{variant} seed {seed}: key scores");
                Compare.Close(values.ValueSum(weights),
                    Product(weights, values.Decompress()), tolerance, tolerance, $"{variant} seed {seed}: value sum");
            }
        });

        // [1, 4, n, k] · [1, 2, k, m] in double precision, term by term.
        static Tensor Product(Tensor rows, Tensor matrix) =>
            (rows.to(ScalarType.Float64).cpu().unsqueeze(4) * matrix.to(ScalarType.Float64).cpu().repeat_interleave(2, 1).unsqueeze(2)).sum(3);
    }

    // A past, then two steps; what is not finite is anywhere in them, on CUDA where its kernels give what the formula gives.
    private void Run(
        Random random, ScalarType dtype, KeyValueCache cache, Func<Tensor, Tensor, Tensor, Tensor> formula, string what, bool allSeen = true)
    {
        using var scope = NewDisposeScope();
        manual_seed(random.Next());
        bool everywhere = device == "cpu";
        foreach (int count in new[] { random.Next(1, 150), random.Next(1, 9), everywhere && random.Next(3) == 0 ? random.Next(9, 40) : 1 })
        {
            (Tensor query, Tensor keys, Tensor values) = (Number(4, count, dtype), Number(2, count, dtype), Number(2, count, dtype));
            foreach (Tensor operand in new[] { query, keys, values })
            {
                bool served = everywhere || (count <= 8 && (!ReferenceEquals(operand, values) || (count == 1 && allSeen)));
                if (random.Next(4) == 0 && served)
                {
                    Plant(random, operand);
                }
            }

            Tensor expected = formula(query, keys, values);
            Compare.Close(cache.Forward(query, keys, values, 0.125), expected, Tolerance(dtype), Tolerance(dtype), $"{what}: {count} tokens");
        }
    }

    private void OnlyOnTheCpu(string because)
    {
        if (device != "cpu")
        {
            Assert.Ignore(because);
        }
    }

    // One number, a row, or all rows.
    private void Plant(Random random, Tensor operand)
    {
        long[] shape = operand.shape;
        int extent = random.Next(8);
        using Tensor value = tensor(Specials[random.Next(3)], device: device).to(operand.dtype);
        using Tensor head = operand[0, random.Next((int)shape[1])];
        if (extent == 0)
        {
            head.copy_(value);
            return;
        }

        using Tensor row = head[random.Next((int)shape[2])];
        using Tensor target = extent < 4 ? row : row[random.Next((int)shape[3])];
        target.copy_(value);
    }

    private Tensor Number(int heads, int tokens, ScalarType dtype) => rand(1, heads, tokens, HeadDim).mul(2).sub(1).to(dtype).to(device);
}
