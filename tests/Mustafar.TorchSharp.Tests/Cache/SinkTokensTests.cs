using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>The first tokens of a sequence stay as they came, and every later one sees them.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class SinkTokensTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 64 };
    private static readonly double Scale = 1 / Math.Sqrt(64);

    /// <summary>A prompt, single tokens, blocks for the decode kernel and for expansion, padded, with sinks that fill in different steps.</summary>
    [Test]
    public void Steps_are_attention_with_dense_sinks(
        [Values(1, 4, 40)] int sinks, [Values(null, 1, 50)] int? window, [Values(ScalarType.Float32, ScalarType.BFloat16)] ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        manual_seed(sinks);
        MustafarOptions options = new() { LocalWindow = 16, GroupSize = 32, SinkTokens = sinks, SlidingWindow = window };
        using MustafarCache cache = new(2, s_shape, dtype, new Device(device), options);
        ReferenceCache reference = new(2, options, 64);
        double tolerance = dtype == ScalarType.Float32 ? 1e-5 : 2e-2;
        foreach (int[] counts in new int[][] { [3, 0], [1, 1], [0, 2], [5, 8], [90, 30], [1, 1], [4, 0], [7, 7], [20, 31], [0, 1] })
        {
            int most = counts.Max();
            (Tensor query, Tensor keys, Tensor values) = (Random(4, most), Random(2, most), Random(2, most));
            Tensor expected = reference.Forward(query, keys, values, Scale, counts);
            Compare.Close(cache.Forward(query, keys, values, counts: counts), expected, tolerance, tolerance, $"{counts[0]} and {counts[1]} tokens");
            Assert.That(cache.Lengths, Is.EqualTo(reference.Lengths));
            Assert.That(cache.CompressedLengths, Is.EqualTo(reference.Compressed));
        }

        Tensor last = Random(4, 3);
        Compare.Close(cache.Attend(last), reference.Attend(last, Scale), tolerance, tolerance, "queries at cached tokens");

        Tensor Random(int heads, int tokens) => randn(2, heads, tokens, 64).to(dtype).to(device);
    }

    /// <summary>A long prompt over a sliding window, in more than one block of queries.</summary>
    [Test]
    public void A_prompt_sees_its_sinks_past_the_window()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        MustafarOptions options = new() { SinkTokens = 3, SlidingWindow = 40 };
        using MustafarCache cache = new(1, new() { NumKvHeads = 1, HeadDim = 64 }, ScalarType.Float32, new Device(device), options);
        Tensor x = randn(1, 1, 700, 64).to(device);
        Compare.Close(cache.Forward(x, x, x)[0], ReferenceAttention.Attend(x[0], x[0], x[0], Scale, 40, 3), 1e-5, 1e-5, "prompt");
    }

    /// <summary>What a forgotten sequence held does not reach the next one, not even NaN in slots that are empty again.</summary>
    [Test]
    public void A_sink_that_is_gone_leaves_nothing()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(1, new() { NumKvHeads = 1, HeadDim = 64 }, ScalarType.Float32, new Device(device), new MustafarOptions { SinkTokens = 4 });
        Tensor bad = full(1, 1, 6, 64, float.NaN).to(device);
        Tensor one = ones(1, 1, 1, 64).to(device);
        cache.Append(bad, bad);
        cache.Clear();
        Compare.Same(cache.Forward(one, one, one), one, "a token alone sees itself");
        cache.Append(bad, bad);
        cache.Truncate(1);
        Compare.Same(cache.Attend(one), one, "shortened to that token");
    }

    [Test]
    public void Sinks_are_counted()
    {
        using MustafarCache with = New(4), without = New(0);
        Assert.That(with.Memory.WindowBytes - without.Memory.WindowBytes, Is.EqualTo(2 * 2 * 4 * 64 * sizeof(float)), "keys and values of two heads");
        using Tensor x = randn(1, 2, 10, 64).to(device);
        with.Append(x, x);
        Assert.That(with.Memory.DenseBytes, Is.EqualTo(2 * 2 * 10 * 64 * sizeof(float)));

        MustafarCache New(int sinks) => new(1, s_shape, ScalarType.Float32, new Device(device), new MustafarOptions { SinkTokens = sinks });
    }
}
