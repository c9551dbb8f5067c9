using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Steps of more tokens than the decode kernel takes, over pasts of each kind.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class ManyTokensTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    /// <summary>No past, one of dense tokens only, and around the first group; with sinks that are complete, begun or missing.</summary>
    [Test]
    public void A_short_past_is_seen_whole(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(0, 3)] int sinks, [Values(1, 4)] int group)
    {
        MustafarOptions options = new() { LocalWindow = 0, GroupSize = 32, SinkTokens = sinks };
        foreach (int past in new[] { 0, 1, 2, 3, 9, 31, 32, 33, 34, 35, 64, 65, 67, 68 })
        {
            foreach (int count in new[] { 9, 40 })
            {
                Check(dtype, headDim: 64, numKvHeads: 2, group, options, [past], [count], $"{count} tokens after {past}");
            }
        }
    }

    /// <summary>Sequences of their own lengths and numbers of new tokens, some of none, in heads of each size.</summary>
    [Test]
    [Pairwise]
    public void Sequences_of_a_batch_see_their_own_past(
        [ValueSource(nameof(DTypes))] ScalarType dtype,
        [Values(64, 80, 96, 128, 256)] int headDim,
        [Values(1, 3, 8)] int group,
        [Values(0, 4)] int sinks)
    {
        MustafarOptions options = new() { LocalWindow = 20, GroupSize = 64, SinkTokens = sinks };
        Check(dtype, headDim, numKvHeads: 2, group, options, [0, 1, 150, 300, 47, 90], [12, 30, 9, 0, 25, 1], "ragged");
        Check(dtype, headDim, numKvHeads: 1, group, options, [200, 200], [17, 17], "uniform");
    }

    /// <summary>More compressed tokens than are expanded at once, on the CPU and on CUDA, and a ring that has gone round.</summary>
    [TestCase(ScalarType.Float32, 4)]
    [TestCase(ScalarType.Float16, 0)]
    [TestCase(ScalarType.BFloat16, 4)]
    public void A_long_past_is_seen_in_segments(ScalarType dtype, int sinks)
    {
        MustafarOptions options = new() { LocalWindow = 40, GroupSize = 96, SinkTokens = sinks };
        int atOnce = device == "cpu" ? 2048 : 16384;
        Check(dtype, headDim: 64, numKvHeads: 1, group: 2, options, [(2 * atOnce) + 300], [11], "long past");
    }

    /// <summary>A window that leaves out some of the past, of the new tokens or of neither, in one block of queries and in two.</summary>
    [Test]
    [Pairwise]
    public void A_window_hides_what_is_before_it(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(1, 33, 200, 2000)] int window, [Values(0, 4)] int sinks, [Values(1, 4)] int group)
    {
        MustafarOptions options = new() { LocalWindow = 20, GroupSize = 64, SinkTokens = sinks, SlidingWindow = window };
        Check(dtype, headDim: 64, numKvHeads: 2, group, options, [0, 3, 40, 300, 150], [12, 30, 9, 25, 1], $"window of {window}");
        Check(dtype, headDim: 64, numKvHeads: 1, group: 1, options, [700], [530], $"window of {window}, two blocks");
    }

    /// <summary>Scores far from zero, at which a merge of parts by their sums alone would overflow.</summary>
    [Test]
    public void Large_scores_do_not_overflow([ValueSource(nameof(DTypes))] ScalarType dtype, [Values(-1, 1)] int sign)
    {
        MustafarOptions options = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 0, GroupSize = 32 };
        Check(dtype, headDim: 64, numKvHeads: 1, group: 1, options, [4500], [10], "large scores", offset: sign * 8);
    }

    /// <summary>A fork attends as its parent would, and the parent is not disturbed.</summary>
    [Test]
    public void Forks_go_on_by_themselves([ValueSource(nameof(DTypes))] ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        MustafarOptions options = new() { LocalWindow = 16, GroupSize = 32 };
        using MustafarCache cache = new(2, new() { NumKvHeads = 2, HeadDim = 64 }, dtype, new Device(device), options);
        ReferenceCache reference = new(2, options, 64);
        (Tensor keys, Tensor values) = (Random(dtype, 2, 2, 250, 64), Random(dtype, 2, 2, 250, 64));
        int[] lengths = [250, 90];
        cache.Append(keys, values, lengths);
        reference.Append(keys, values, lengths);
        using MustafarCache fork = cache.Fork([1, 0, 1]);
        ReferenceCache forkReference = reference.Fork([1, 0, 1]);
        for (int step = 0; step < 3; step++)
        {
            Step(fork, forkReference, dtype, 4, [20, 33, 12], $"fork, step {step}");
            Step(cache, reference, dtype, 4, [40, 0], $"parent, step {step}");
        }
    }

    private void Check(
        ScalarType dtype, int headDim, int numKvHeads, int group, MustafarOptions options, int[] pasts, int[] counts, string what, double offset = 0)
    {
        using var scope = NewDisposeScope();
        manual_seed(headDim + group);
        int batch = pasts.Length, most = pasts.Max();
        using MustafarCache cache = new(batch, new() { NumKvHeads = numKvHeads, HeadDim = headDim }, dtype, new Device(device), options);
        ReferenceCache reference = new(batch, options, headDim);
        if (most > 0)
        {
            (Tensor keys, Tensor values) = (Random(dtype, batch, numKvHeads, most, headDim), Random(dtype, batch, numKvHeads, most, headDim));
            cache.Append(keys + offset, values, pasts);
            reference.Append(keys + offset, values, pasts);
        }

        Step(cache, reference, dtype, numKvHeads * group, counts, what, offset);
        Step(cache, reference, dtype, numKvHeads * group, counts, $"{what}, again", offset);
    }

    private void Step(
        MustafarCache cache, ReferenceCache reference, ScalarType dtype, int numHeads, int[] counts, string what, double offset = 0)
    {
        // Scores of some hundreds leave less of single precision to what they differ by.
        double scale = 1 / Math.Sqrt(cache.HeadDim), tolerance = Math.Max(Tolerance(dtype), offset == 0 ? 0 : 1e-3);
        int most = counts.Max();
        Tensor query = Random(dtype, counts.Length, numHeads, most, cache.HeadDim) + Math.Abs(offset);
        Tensor keys = Random(dtype, counts.Length, cache.NumKvHeads, most, cache.HeadDim) + offset;
        Tensor values = Random(dtype, counts.Length, cache.NumKvHeads, most, cache.HeadDim);
        Tensor expected = reference.Forward(query, keys, values, scale, counts);
        Tensor actual = cache.Forward(query, keys, values, counts: counts);
        Assert.That(actual.dtype, Is.EqualTo(dtype), what);
        Compare.Close(actual, expected, tolerance, tolerance, what);
        Assert.That(cache.CompressedLengths, Is.EqualTo(reference.Compressed), what);
    }

    // A rounding or two of values of size 1.
    private static double Tolerance(ScalarType dtype) => dtype == ScalarType.Float32 ? 2e-5 : dtype == ScalarType.Float16 ? 2e-3 : 1.5e-2;

    private Tensor Random(ScalarType dtype, params long[] shape) => randn(shape).to(dtype).to(device);
}
