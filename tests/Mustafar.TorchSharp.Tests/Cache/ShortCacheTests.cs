using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Short caches take no more than their tokens would take dense in the same data type, and hold the same as others.</summary>
internal sealed class ShortCacheTests
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 64 };
    private static readonly int[] s_lengths =
        [.. Enumerable.Range(64, 170), 256, 287, 288, 352, 415, 416, 543, 544, 545, 607, 608, 800, 1056, 1500, 2047, 2080, 3000, 4096];

    /// <summary>Grown token by token, as in decoding, through all lengths.</summary>
    [Test]
    public void Growing_by_tokens([Values(64, 128)] int headDim, [Values(1, 3, 8)] int batch, [Values] bool single)
    {
        using var scope = NewDisposeScope();
        using IDisposable mode = no_grad();
        ScalarType dtype = single ? ScalarType.Float32 : ScalarType.Float16;
        using MustafarCache cache = new(batch, new() { NumKvHeads = 1, HeadDim = headDim }, dtype);
        Tensor token = randn(batch, 1, 1, headDim).to(dtype);
        for (int length = 1; length <= 1200; length++)
        {
            cache.Append(token, token);
            AssertNoMoreThanDense(cache.Memory, length, length);
        }
    }

    /// <summary>Filled at once, as by a prompt.</summary>
    [Test]
    public void Filled_at_once(
        [Values(64, 128)] int headDim,
        [Values(1, 2, 5, 8)] int batch,
        [Values(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)] ScalarType dtype)
    {
        using IDisposable mode = no_grad();
        foreach (int length in s_lengths)
        {
            using var scope = NewDisposeScope();
            using MustafarCache cache = new(batch, new() { NumKvHeads = 2, HeadDim = headDim }, dtype);
            Tensor prompt = ones(batch, 2, length, headDim, dtype: dtype);
            cache.Append(prompt, prompt);
            AssertNoMoreThanDense(cache.Memory, length, length);
        }
    }

    /// <summary>Sequences of one cache that join one after the other and differ in length.</summary>
    [Test]
    public void Sequences_of_a_model([Values(64, 128)] int headDim, [Values(1, 2, 3)] int seed)
    {
        using var scope = NewDisposeScope();
        using IDisposable mode = no_grad();
        Random random = new(seed);
        using MustafarModelCache cache = new(2, new() { NumKvHeads = 1, HeadDim = headDim }, ScalarType.Float16);
        for (int count = 1; count <= 8; count++)
        {
            int sequence = cache.AddSequence(), length = random.Next(128, 700);
            using CacheStep step = cache.BeginStep([sequence], length);
            Tensor prompt = ones(1, 1, length, headDim, dtype: ScalarType.Float16);
            for (int layer = 0; layer < cache.NumLayers; layer++)
            {
                _ = step.Attend(layer, prompt, prompt, prompt);
            }

            step.Commit();
            AssertNoMoreThanDense(cache.Memory, count, length);
        }
    }

    /// <summary>While the ring of dense tokens and the pages change their sizes, attention sees the same tokens as in a cache whose
    /// sizes never change; so it does after tokens were dropped and in a fork.</summary>
    [Test]
    public void What_is_stored_stays_the_same([Values(0, 3)] int sinks, [Values(1, 2, 3, 4)] int seed)
    {
        using var scope = NewDisposeScope();
        using IDisposable mode = no_grad();
        Random random = new(seed);
        manual_seed(seed);
        MustafarOptions options = new() { SinkTokens = sinks };
        using MustafarModelCache grows = new(2, s_shape, ScalarType.Float32, options: options);
        using MustafarModelCache whole = new(2, s_shape, ScalarType.Float32, options: options, limits: new CacheLimits { BudgetTokens = 1 << 14 });
        List<int> sequences = [grows.AddSequence(), grows.AddSequence()];
        Assert.That(new[] { whole.AddSequence(), whole.AddSequence() }, Is.EqualTo(sequences));
        for (int i = 0; i < 120; i++)
        {
            int sequence = sequences[random.Next(sequences.Count)];
            switch (random.Next(12))
            {
                case 0:
                    int length = random.Next(grows.LengthOf(sequence) + 1);
                    grows.Truncate(sequence, length);
                    whole.Truncate(sequence, length);
                    break;
                case 1 when sequences.Count < 5:
                    sequences.Add(grows.Fork(sequence));
                    Assert.That(whole.Fork(sequence), Is.EqualTo(sequences[^1]));
                    break;
                default:
                    Step(grows, whole, sequence, tokens: random.Next(3) == 0 ? random.Next(2, 90) : 1, commit: random.Next(6) > 0);
                    break;
            }
        }

        Assert.That(sequences.Select(grows.LengthOf), Is.EqualTo(sequences.Select(whole.LengthOf)));
        Assert.That(grows.Memory.TotalBytes, Is.LessThan(whole.Memory.TotalBytes));
    }

    private static void Step(MustafarModelCache grows, MustafarModelCache whole, int sequence, int tokens, bool commit)
    {
        using var scope = NewDisposeScope();
        Tensor query = randn(1, 4, tokens, 64), keys = randn(1, 2, tokens, 64), values = randn(1, 2, tokens, 64);
        using CacheStep one = grows.BeginStep([sequence], tokens), other = whole.BeginStep([sequence], tokens);
        for (int layer = 0; layer < grows.NumLayers; layer++)
        {
            float[] expected = Values.Of(other.Attend(layer, query, keys, values));
            Assert.That(Values.Of(one.Attend(layer, query, keys, values)), Is.EqualTo(expected), $"{grows.LengthOf(sequence)} + {tokens} tokens");
        }

        if (commit)
        {
            one.Commit();
            other.Commit();
        }
    }

    private static void AssertNoMoreThanDense(KeyValueCacheMemory memory, int name, int length)
    {
        Assert.That(memory.UsedBytes, Is.LessThanOrEqualTo(memory.TotalBytes));
        if (length >= 64 && memory.TotalBytes > memory.DenseBytes)
        {
            Assert.Fail($"{name}: {memory}, {100 * memory.RatioToDense:F1} % of dense");
        }
    }
}
