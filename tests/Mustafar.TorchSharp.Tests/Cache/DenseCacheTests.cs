using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
public sealed class DenseCacheTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = HeadDim };
    private readonly Device _device = new(device);

    private const int HeadDim = 16;

    private static IEnumerable<TestCaseData> Shapes()
    {
        Random random = new(20);
        for (int i = 0; i < 20; i++)
        {
            yield return new TestCaseData(random.Next(1, 5), random.Next(1, 4), random.Next(1, 5), i);
        }
    }

    // Steps of random size, in some of them with fewer tokens for some sequences, against one query at a time in float64. The library has
    // kernels for a head_dim of 80 and none for 16.
    [TestCaseSource(nameof(Shapes))]
    public void AttendsAsPlainAttentionDoes(int batch, int kvHeads, int group, int seed)
    {
        using DisposeScope scope = NewDisposeScope();
        Random random = new(seed);
        manual_seed(seed);
        int headDim = seed % 2 == 0 ? 80 : HeadDim;
        int? window = random.Next(3) == 0 ? random.Next(1, 60) : null;
        using DenseCache cache = new(batch, new() { NumKvHeads = kvHeads, HeadDim = headDim }, ScalarType.Float32, _device, slidingWindow: window);
        Tensor[] keys = [.. Enumerable.Range(0, batch).Select(_ => zeros(kvHeads, 0, headDim, device: _device))];
        Tensor[] values = [.. Enumerable.Range(0, batch).Select(_ => zeros(kvHeads, 0, headDim, device: _device))];
        double? scale = new double?[] { null, 0.4, -0.3 }[random.Next(3)];
        for (int step = 0; step < 8; step++)
        {
            int tokens = random.Next(3) switch { 0 => 1, 1 => random.Next(2, 9), _ => random.Next(9, 90) };
            int[] counts = random.Next(2) == 0 ? [] : [.. Enumerable.Range(0, batch).Select(_ => random.Next(tokens + 1))];
            Tensor query = randn(batch, kvHeads * group, tokens, headDim, device: _device);
            Tensor key = randn(batch, tokens, kvHeads, headDim, device: _device).transpose(1, 2);
            Tensor value = randn(batch, tokens, kvHeads, headDim, device: _device).transpose(1, 2);
            Tensor output = cache.Forward(query, key, value, scale, counts);
            for (int sequence = 0; sequence < batch; sequence++)
            {
                int count = counts.Length == 0 ? tokens : counts[sequence];
                keys[sequence] = cat([keys[sequence], key[sequence].narrow(1, 0, count)], 1);
                values[sequence] = cat([values[sequence], value[sequence].narrow(1, 0, count)], 1);
                Tensor expected = zeros(kvHeads * group, tokens, headDim, dtype: ScalarType.Float64, device: _device);
                for (int i = 0; i < count; i++)
                {
                    long end = keys[sequence].shape[1] - count + i + 1, first = Math.Max(0, end - (window ?? end));
                    expected.narrow(1, i, 1).copy_(Attend(
                        query[sequence].narrow(1, i, 1), keys[sequence].narrow(1, first, end - first), values[sequence].narrow(1, first, end - first), group, scale));
                }

                double error = (output[sequence].to(ScalarType.Float64) - expected).abs().max().item<double>();
                Assert.That(error, Is.LessThan(2e-5), $"step {step}, sequence {sequence}, {count} of {tokens} tokens");
            }

            Assert.That(cache.Lengths, Is.EqualTo(keys.Select(item => (int)item.shape[1])));
        }
    }

    [Test]
    public void LowPrecisionIsNearFloat([Values(ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype, [Values(HeadDim, 128)] int headDim)
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(1);
        double tolerance = dtype == ScalarType.Float16 ? 4e-3 : 3e-2;
        KeyValueShape shape = new() { NumKvHeads = 2, HeadDim = headDim };
        using DenseCache cache = new(2, shape, dtype, _device);
        using DenseCache exact = new(2, shape, ScalarType.Float32, _device);
        foreach (int tokens in new[] { 37, 1, 5 })
        {
            Tensor query = randn(2, 4, tokens, headDim, device: _device).to(dtype);
            Tensor key = randn(2, 2, tokens, headDim, device: _device).to(dtype);
            Tensor value = randn(2, 2, tokens, headDim, device: _device).to(dtype);
            Tensor output = cache.Forward(query, key, value);
            Tensor expected = exact.Forward(query.to(ScalarType.Float32), key.to(ScalarType.Float32), value.to(ScalarType.Float32));
            Assert.That(output.dtype, Is.EqualTo(dtype));
            Assert.That((output.to(ScalarType.Float32) - expected).abs().max().item<float>(), Is.LessThan(tolerance));
        }
    }

    [Test]
    public void TruncateAndClearForgetTokens()
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(2);
        Tensor query = randn(2, 2, 40, HeadDim, device: _device);
        Tensor key = randn(2, 2, 40, HeadDim, device: _device);
        Tensor value = randn(2, 2, 40, HeadDim, device: _device);
        using DenseCache cache = new(2, s_shape, ScalarType.Float32, _device, capacity: 3);
        Tensor expected = cache.Forward(query, key, value, counts: [40, 12]);
        cache.Truncate(20);
        Assert.That(cache.Lengths, Is.EqualTo(new[] { 20, 12 }));
        Tensor rest = cache.Forward(
            query.narrow(2, 20, 20), key.narrow(2, 20, 20), value.narrow(2, 20, 20), counts: [20, 0]);
        Assert.That((rest[0] - expected[0].narrow(1, 20, 20)).abs().max().item<float>(), Is.LessThan(1e-5));
        Assert.That(rest[1].abs().max().item<float>(), Is.Zero);
        cache.Clear();
        Assert.That(cache.Lengths, Is.EqualTo(new[] { 0, 0 }));
        Assert.That((cache.Forward(query, key, value, counts: [40, 12]) - expected).abs().max().item<float>(), Is.LessThan(1e-5));
    }

    // A forgotten NaN lies in a slot that a shorter sequence masks; 0 · NaN would bring it back.
    [Test]
    public void ForgottenNaNsStayForgotten()
    {
        using DisposeScope scope = NewDisposeScope();
        using DenseCache cache = new(2, new() { NumKvHeads = 1, HeadDim = HeadDim }, ScalarType.Float32, _device);
        Tensor nan = full(new long[] { 2, 1, 8, HeadDim }, float.NaN, device: _device);
        cache.Forward(ones(2, 1, 8, HeadDim, device: _device), nan, nan);
        cache.Clear();
        Tensor one = ones(2, 1, 8, HeadDim, device: _device);
        Assert.That((cache.Forward(one, one, one, counts: [8, 2])[1].narrow(1, 0, 2) - 1).abs().max().item<float>(), Is.LessThan(1e-6));
        Assert.That(cache.Forward(one, one, one, counts: [1, 1]).isnan().any().item<bool>(), Is.False);
    }

    [Test]
    public void WorksInAndOutOfInferenceMode()
    {
        using DisposeScope scope = NewDisposeScope();
        using DenseCache cache = new(1, new() { NumKvHeads = 1, HeadDim = HeadDim }, ScalarType.Float32, _device);
        Tensor token = ones(1, 1, 1, HeadDim, device: _device);
        using (inference_mode())
        {
            cache.Forward(token, token, token);
        }

        Tensor output = cache.Forward(token, token, token);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(cache.Length, Is.EqualTo(2));
            Assert.That(output.requires_grad, Is.False);
        }
    }

    [Test]
    public void MemoryCountsReserveAndTokens()
    {
        using DisposeScope scope = NewDisposeScope();
        using DenseCache cache = new(2, new() { NumKvHeads = 3, HeadDim = HeadDim }, ScalarType.BFloat16, _device);
        Assert.That(cache.Memory, Is.EqualTo(default(KeyValueCacheMemory)));
        Tensor token = ones(2, 3, 10, HeadDim, dtype: ScalarType.BFloat16, device: _device);
        cache.Forward(token, token, token, counts: [10, 4]);
        KeyValueCacheMemory memory = cache.Memory;
        using (Assert.EnterMultipleScope())
        {
            Assert.That(memory.DenseBytes, Is.EqualTo(14 * 2 * 3 * HeadDim * 2));
            Assert.That(memory.Fp16Bytes, Is.EqualTo(memory.DenseBytes));
            Assert.That(memory.WindowBytes, Is.GreaterThanOrEqualTo(20 * 2 * 3 * HeadDim * 2));
            Assert.That(memory.TotalBytes, Is.EqualTo(memory.WindowBytes));
        }
    }

    [Test]
    public void ForwardLeavesNoTensorsBehind()
    {
        using DenseCache cache = new(1, new() { NumKvHeads = 1, HeadDim = HeadDim }, ScalarType.Float32, _device, capacity: 64);
        using Tensor token = ones(1, 2, 1, HeadDim, device: _device);
        using Tensor key = ones(1, 1, 1, HeadDim, device: _device);
        cache.Forward(token, key, key).Dispose();
        long before = Tensor.TotalCount;
        for (int i = 0; i < 10; i++)
        {
            cache.Forward(token, key, key).Dispose();
        }

        Assert.That(Tensor.TotalCount, Is.EqualTo(before));
    }

    /// <summary>Growing replaces the storage that another call works on.</summary>
    [Test]
    public void TwoThreadsAtOnceEitherBothFinishOrOneIsRefused()
    {
        using DisposeScope scope = NewDisposeScope();
        using DenseCache cache = new(1, s_shape, ScalarType.Float32);
        Tensor x = randn(1, 2, 50, HeadDim);
        int forwards = 0;
        Parallel.For(0, 200, new ParallelOptions { MaxDegreeOfParallelism = 4 }, i =>
        {
            try
            {
                if (i % 4 == 0)
                {
                    cache.Fork([0]).Dispose();
                }
                else
                {
                    cache.Forward(x, x, x).Dispose();
                    Interlocked.Increment(ref forwards);
                }
            }
            catch (InvalidOperationException)
            {
            }
        });
        Assert.That(cache.Length, Is.EqualTo(forwards * 50));
    }

    [Test]
    public void RefusesBadInputAndStaysUsable()
    {
        using DisposeScope scope = NewDisposeScope();
        DenseCache cache = new(2, s_shape, ScalarType.Float32, _device);
        Tensor query = ones(2, 4, 3, HeadDim, device: _device);
        Tensor kv = ones(2, 2, 3, HeadDim, device: _device);
        using (Assert.EnterMultipleScope())
        {
            Refuses(() => cache.Forward(query, kv.to(ScalarType.Float16), kv), "keys", "Float16");
            Refuses(() => cache.Forward(query.to(ScalarType.Int64), kv, kv), "query", "Int64");
            Refuses(() => cache.Forward(query, kv, kv.to(META)), "values", "meta");
            Refuses(() => cache.Forward(query, kv.narrow(0, 0, 1), kv), "keys", "[1, 2, 3, 16]");
            Refuses(() => cache.Forward(query, kv, kv.narrow(3, 0, 8)), "values", "[2, 2, 3, 8]");
            Refuses(() => cache.Forward(query, kv, kv.narrow(2, 0, 2)), "values", "3 tokens");
            Refuses(() => cache.Forward(query, kv.narrow(2, 0, 2), kv.narrow(2, 0, 2)), "query", "2 keys");
            Refuses(() => cache.Forward(query.narrow(1, 0, 3), kv, kv), "query", "multiple of 2");
            Refuses(() => cache.Forward(query[0], kv, kv), "query", "[4, 3, 16]");
            Refuses(() => cache.Forward(query, kv.narrow(2, 0, 0), kv.narrow(2, 0, 0)), "keys", "tokens > 0");
            Refuses(() => cache.Forward(query, kv.to_sparse(), kv), "keys", "sparse");
            Refuses(() => cache.Forward(query, kv, kv, scale: double.NaN), "scale", "finite");
            Refuses(() => cache.Forward(query, kv, kv, counts: [1]), "counts", "2 sequences");
            Refuses(() => cache.Forward(query, kv, kv, counts: [1, 4]), "counts", "sequence 1");
            Refuses(() => cache.Forward(query, kv, kv, counts: [-1, 1]), "counts", "sequence 0");
            Refuses(() => cache.Truncate(1), "length", "0 to 0");
            Assert.That(cache.Lengths, Is.EqualTo(new[] { 0, 0 }));
            Assert.That(() => new DenseCache(0, new() { NumKvHeads = 1, HeadDim = 1 }, ScalarType.Float32), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new DenseCache(1, new() { NumKvHeads = 1, HeadDim = 1 }, ScalarType.Float64), Throws.ArgumentException.With.Message.Contains("Float64"));
        }

        cache.Forward(query, kv, kv);
        Assert.That(cache.Length, Is.EqualTo(3));
        cache.Dispose();
        cache.Dispose();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => cache.Forward(query, kv, kv), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => cache.Truncate(0), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => cache.Memory, Throws.TypeOf<ObjectDisposedException>());
        }
    }

    private static void Refuses(Action action, string parameter, string expected)
    {
        ArgumentException? error = Assert.Catch<ArgumentException>(action);
        Assert.That(error?.ParamName, Is.EqualTo(parameter));
        Assert.That(error?.Message, Does.Contain(expected));
    }

    // One query token of all heads [heads, 1, head_dim] against the keys that it sees, in float64.
    private static Tensor Attend(Tensor query, Tensor keys, Tensor values, int group, double? scale)
    {
        Tensor q = query.to(ScalarType.Float64);
        Tensor k = keys.to(ScalarType.Float64).repeat_interleave(group, 0);
        Tensor v = values.to(ScalarType.Float64).repeat_interleave(group, 0);
        Tensor scores = matmul(q, k.transpose(1, 2)) * (scale ?? (1 / Math.Sqrt(query.shape[2])));
        return matmul(scores.softmax(-1), v);
    }
}
