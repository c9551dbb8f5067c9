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
    private const int HeadDim = 64; // of dense caches
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = HeadDim };

    private static readonly (int HeadDim, bool Balanced)[] Forms =
        [(64, false), (64, true), (80, false), (128, false), (128, true), (256, false), (256, true)];

    private static readonly float[] Specials = [float.NaN, float.PositiveInfinity, float.NegativeInfinity];

    // The CPU runs them with each instruction set.
    private int Cases(int headDim) => device != "cpu" ? 16 : headDim == HeadDim ? 6 : 2;

    private static double Tolerance(ScalarType dtype) => dtype == ScalarType.Float32 ? 1e-4 : dtype == ScalarType.Float16 ? 4e-3 : 3e-2;

    /// <summary>
    /// A compressed cache: compressed tokens, the window, and 1 to 40 new tokens; sinks and a sliding window in some. On CUDA up to 8 new
    /// tokens, and values that all queries see: torch's kernels take more, and whole blocks meet a weight of zero.
    /// </summary>
    [Test]
    public void A_compressed_cache_gives_what_the_formula_gives(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype,
        [ValueSource(nameof(Forms))] (int HeadDim, bool Balanced) form)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            for (int seed = 0; seed < Cases(form.HeadDim); seed++)
            {
                Random random = new(seed);
                MustafarOptions options = Options(random, form.Balanced);
                using MustafarCache cache = new(1, s_shape with { HeadDim = form.HeadDim }, dtype, new Device(device), options);
                ReferenceCache reference = new(1, options, form.HeadDim);
                Run(random, cache, (query, keys, values) => reference.Forward(query, keys, values, 0.125, [(int)keys.size(2)]),
                    $"{variant} {form} seed {seed} {options}", options.SlidingWindow is null);
            }
        });
    }

    /// <summary>A past of which CUDA's thread blocks have a part each, and up to 8 query heads for each KV head.</summary>
    [Test]
    public void So_does_a_compressed_cache_with_a_long_past(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype,
        [ValueSource(nameof(Forms))] (int HeadDim, bool Balanced) form)
    {
        for (int seed = 0; seed < Cases(form.HeadDim); seed++)
        {
            using var scope = NewDisposeScope();
            Random random = new(seed);
            manual_seed(seed);
            MustafarOptions options = Options(random, form.Balanced);
            bool allSeen = device == "cpu" || options.SlidingWindow is null;
            (int past, int heads) = (random.Next(500, 900), 2 << random.Next(4));
            (Tensor pastKeys, Tensor pastValues) = (Operand(2, past), Operand(2, past, allSeen));
            (Tensor query, Tensor keys, Tensor values) = (Operand(heads, 1), Operand(2, 1), Operand(2, 1, allSeen));
            ReferenceCache reference = new(1, options, form.HeadDim);
            reference.Append(pastKeys, pastValues, [past]);
            Tensor expected = reference.Forward(query, keys, values, 0.125, [1]);
            TestDevices.ForEachVariant(device, variant =>
            {
                using MustafarCache cache = new(1, s_shape with { HeadDim = form.HeadDim }, dtype, new Device(device), options);
                cache.Append(pastKeys, pastValues);
                string what = $"{variant} {form} seed {seed} {options}, {heads} heads";
                Compare.Close(cache.Forward(query, keys, values, 0.125), expected, Tolerance(dtype), Tolerance(dtype), what);
            });

            Tensor Operand(int count, int tokens, bool mayHave = true)
            {
                Tensor operand = Number(count, tokens, form.HeadDim, dtype);
                if (random.Next(3) == 0 && mayHave)
                {
                    Plant(random, operand);
                }

                return operand;
            }
        }
    }

    /// <summary>A dense cache. On CUDA torch's kernels decide.</summary>
    [Test]
    public void A_dense_cache_gives_what_the_formula_gives(
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype)
    {
        OnlyOnTheCpu("torch's CUDA kernels are used as they are.");
        for (int seed = 0; seed < 32; seed++)
        {
            Random random = new(seed);
            int? window = random.Next(3) == 0 ? random.Next(5, 120) : null;
            using DenseCache cache = new(1, s_shape, dtype, slidingWindow: window);
            (Tensor? allKeys, Tensor? allValues) = (null, null);
            Run(random, cache, Forward, $"seed {seed}, window {window}");

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
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype,
        [ValueSource(nameof(Forms))] (int HeadDim, bool Balanced) form)
    {
        TestDevices.ForEachVariant(device, variant =>
        {
            for (int seed = 0; seed < Cases(form.HeadDim); seed++)
            {
                using var scope = NewDisposeScope();
                Random random = new(seed);
                manual_seed(seed);
                int tokens = random.Next(1, 100), queries = random.Next(1, 9);
                Tensor stored = Number(2, tokens, form.HeadDim, dtype), query = Number(4, queries, form.HeadDim, dtype);
                Tensor weights = rand(1, 4, queries, tokens, device: device);
                foreach (Tensor operand in new[] { stored, query, weights })
                {
                    if (random.Next(2) == 0)
                    {
                        Plant(random, operand);
                    }
                }

                using BitmapTensor keys = Compressed(SparsityPattern.BalancedKeys), values = Compressed(SparsityPattern.BalancedValues);
                double tolerance = Tolerance(dtype);
                Compare.Close(keys.KeyScores(query, 0.125),
                    Product(query, keys.Decompress().transpose(2, 3)).mul(0.125), tolerance, tolerance, $"{variant} seed {seed}: key scores");
                Compare.Close(values.ValueSum(weights),
                    Product(weights, values.Decompress()), tolerance, tolerance, $"{variant} seed {seed}: value sum");

                BitmapTensor Compressed(SparsityPattern balanced) =>
                    BitmapTensor.Compress(stored, form.HeadDim / 2, form.Balanced ? balanced : SparsityPattern.Unstructured);
            }
        });

        // [1, 4, n, k] · [1, 2, k, m] in double precision, term by term.
        static Tensor Product(Tensor rows, Tensor matrix) =>
            (rows.to(ScalarType.Float64).cpu().unsqueeze(4) * matrix.to(ScalarType.Float64).cpu().repeat_interleave(2, 1).unsqueeze(2)).sum(3);
    }

    private static MustafarOptions Options(Random random, bool balanced)
    {
        bool prunes = balanced || random.Next(4) > 0;
        return new()
        {
            BalancedKeys = balanced,
            BalancedValues = balanced,
            KeySparsity = prunes ? 0.5 : 0,
            ValueSparsity = prunes ? 0.6 : 0,
            GroupSize = 32,
            LocalWindow = random.Next(40),
            SinkTokens = random.Next(3) == 0 ? 4 : 0,
            SlidingWindow = random.Next(3) == 0 ? random.Next(50, 120) : null,
        };
    }

    // A past, then two steps; what is not finite is anywhere in them, on CUDA where its kernels give what the formula gives.
    private void Run(Random random, KeyValueCache cache, Func<Tensor, Tensor, Tensor, Tensor> formula, string what, bool allSeen = true)
    {
        using var scope = NewDisposeScope();
        manual_seed(random.Next());
        (bool everywhere, ScalarType dtype, int headDim) = (device == "cpu", cache.DType, cache.HeadDim);
        foreach (int count in new[] { random.Next(1, 150), random.Next(1, 9), everywhere && random.Next(3) == 0 ? random.Next(9, 40) : 1 })
        {
            (Tensor query, Tensor keys, Tensor values) = (Operand(4), Operand(2), Operand(2));
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

            Tensor Operand(int heads) => Number(heads, count, headDim, dtype);
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

    private Tensor Number(int heads, int tokens, int headDim, ScalarType dtype) =>
        rand(1, heads, tokens, headDim).mul(2).sub(1).to(dtype).to(device);
}
