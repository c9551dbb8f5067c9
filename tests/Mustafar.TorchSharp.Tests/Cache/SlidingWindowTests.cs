using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>A token sees the last so many tokens, however they came and wherever they are stored.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class SlidingWindowTests(string device)
{
    private const int HeadDim = 64;
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 1, HeadDim = HeadDim };
    private static readonly double Scale = 1 / Math.Sqrt(HeadDim);

    /// <summary>The dense cache, in one piece and in steps.</summary>
    [TestCase(1)]
    [TestCase(40)]
    [TestCase(190)]
    [TestCase(5000)]
    public void Dense_attention_over_the_window(int window)
    {
        using var scope = NewDisposeScope();
        manual_seed(window);
        (Tensor query, Tensor keys, Tensor values) = (Random(2, 2, 600), Random(2, 1, 600), Random(2, 1, 600));
        Tensor expected = stack([.. Enumerable.Range(0, 2).Select(b => ReferenceAttention.Attend(query[b], keys[b], values[b], Scale, window))]);
        using DenseCache whole = New();
        Compare.Close(whole.Forward(query, keys, values), expected, 1e-5, 1e-5, "in one piece");
        using DenseCache steps = New();
        int past = 0;
        foreach (int count in new[] { 200, 1, 8, 30, 260, 1, 1, 99 })
        {
            Tensor output = steps.Forward(query.narrow(2, past, count), keys.narrow(2, past, count), values.narrow(2, past, count));
            Compare.Close(output, expected.narrow(2, past, count), 1e-5, 1e-5, $"{count} tokens at {past}");
            past += count;
        }

        using DenseCache padded = New();
        int[] lengths = [0, 0];
        foreach (int[] counts in new int[][] { [300, 3], [1, 0], [9, 70], [0, 1], [90, 90] })
        {
            int most = counts.Max();
            Tensor Part(Tensor tensor) => stack([.. Enumerable.Range(0, 2).Select(b => tensor[b].narrow(1, lengths[b], most))]);
            Tensor output = padded.Forward(Part(query), Part(keys), Part(values), counts: counts);
            for (int b = 0; b < 2; b++)
            {
                if (counts[b] > 0)
                {
                    Compare.Close(
                        output[b].narrow(1, 0, counts[b]), expected[b].narrow(1, lengths[b], counts[b]), 1e-5, 1e-5, $"{counts[b]} of sequence {b}");
                }

                if (counts[b] < most)
                {
                    Assert.That(Values.Of(output[b].narrow(1, counts[b], most - counts[b])), Is.All.Zero, "padding");
                }

                lengths[b] += counts[b];
            }
        }

        DenseCache New() => new(2, s_shape, ScalarType.Float32, new Device(device), slidingWindow: window);
    }

    /// <summary>An endless generation takes no more pages than the window, what waits for its group, and one group to go back by.</summary>
    [TestCase(1)]
    [TestCase(5)]
    public void Pages_out_of_the_window_are_used_again(int step)
    {
        using var scope = NewDisposeScope();
        MustafarOptions options = new() { LocalWindow = 32, GroupSize = 32, SlidingWindow = 100 };
        using MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device), options);
        Tensor token = Random(1, 1, step);
        long full = 0;
        for (int i = 0; i < 3000; i += step)
        {
            using var stepScope = NewDisposeScope();
            cache.Forward(token, token, token);
            if (i < 400)
            {
                full = cache.Memory.TotalBytes - (8 * 16); // the table of pages has room for 16 at first
            }
        }

        Assert.That(cache.PageAddresses(0), Has.Length.LessThanOrEqualTo((100 + 32 + 32) / 32).And.Unique);
        Assert.That(cache.Memory.TotalBytes, Is.LessThanOrEqualTo(full + (8 * 128)), "8 bytes for each page there ever was");
    }

    /// <summary>What nobody sees is not read: rows of NaN outside the window's blocks change nothing.</summary>
    [TestCase(1)]
    [TestCase(6)]
    [TestCase(20)]
    public void Tokens_out_of_the_window_are_not_read(int count)
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        MustafarOptions options = new() { LocalWindow = 32, GroupSize = 512, SlidingWindow = 64 };
        using MustafarCache cache = new(1, new() { NumKvHeads = 2, HeadDim = HeadDim }, ScalarType.Float32, new Device(device), options);
        Tensor keys = Random(1, 2, 800);
        keys.narrow(2, 0, 640).fill_(float.NaN);
        cache.Append(keys, keys);
        (Tensor query, Tensor fresh) = (Random(1, 2, count), Random(1, 2, count));
        Tensor output = cache.Forward(query, fresh, fresh);
        Assert.That(cache.CompressedLengths[0], Is.EqualTo(512));
        Tensor all = cat([keys, fresh], 2)[0];
        Compare.Close(output[0], ReferenceAttention.Attend(query[0], all, all, Scale, 64), 1e-5, 1e-5, $"{count} tokens");
    }

    [Test]
    public void What_fell_out_of_the_window_can_not_come_back()
    {
        using var scope = NewDisposeScope();
        MustafarOptions options = new() { LocalWindow = 0, GroupSize = 32, SlidingWindow = 50 };
        using MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device), options);
        Tensor x = Random(1, 1, 400);
        cache.Append(x, x);
        Tensor last = x.narrow(2, 399, 1);
        Tensor before = cache.Attend(last);
        Assert.That(() => cache.Truncate(100), Throws.InvalidOperationException.With.Message.Contains("sliding window of 50"));
        Assert.That(() => cache.Attend(x), Throws.InvalidOperationException.With.Message.Contains("sliding window of 50"));
        Assert.That(cache.Length, Is.EqualTo(400));
        Compare.Same(cache.Attend(last), before, "after the refusals");
        cache.Truncate(368);
        cache.Clear();
        Assert.That(() => cache.Append(x, x), Throws.Nothing);
        Compare.Same(cache.Attend(last), before, "the same tokens again");
    }

    private Tensor Random(int batch, int heads, int tokens) => randn(batch, heads, tokens, HeadDim).to(device);
}
