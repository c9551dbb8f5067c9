using System.Runtime.InteropServices;
using Mustafar.Native;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>A call that fails, wherever it fails, leaves the cache as it was.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class RecoveryTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 64 };
    private static readonly MustafarOptions Options = new() { LocalWindow = 16, GroupSize = 32 };

    /// <summary>The library refuses the work itself, after all arguments were found good.</summary>
    [TestCase(0, 100, 0)]
    [TestCase(110, 1, 0)]
    [TestCase(111, 5, 0)]
    [TestCase(111, 60, 0)]
    [TestCase(0, 100, 4)]
    [TestCase(2, 60, 4)]
    [TestCase(111, 5, 4)]
    public void A_native_failure_leaves_everything_as_it_was(int past, int count, int sinks)
    {
        if (device != "cpu")
        {
            Assert.Ignore("An unknown instruction set is refused by the CPU's part of the library.");
        }

        using var scope = NewDisposeScope();
        manual_seed(1);
        using MustafarCache cache = New(sinks);
        using MustafarCache untouched = New(sinks);
        if (past > 0)
        {
            (Tensor earlierKeys, Tensor earlierValues) = (Random(2, past), Random(2, past));
            cache.Append(earlierKeys, earlierValues);
            untouched.Append(earlierKeys, earlierValues);
        }

        (Tensor query, Tensor keys, Tensor values) = (Random(4, count), Random(2, count), Random(2, count));
        KeyValueCacheMemory memory = cache.Memory;
        Fails(() => cache.Forward(query, keys, values));
        Fails(() => cache.Append(keys, values));
        Fails(() => cache.Attend(query));
        if (past > 40)
        {
            Fails(() => cache.Truncate(40));
        }

        Assert.That(cache.Lengths, Is.EqualTo(untouched.Lengths));
        Assert.That(cache.CompressedLengths, Is.EqualTo(untouched.CompressedLengths));
        Assert.That(cache.PageAddresses(0), Has.Length.EqualTo(cache.CompressedLengths[0] / Options.GroupSize));
        Compare.Same(cache.Forward(query, keys, values), untouched.Forward(query, keys, values), "the same call, later");
        Assert.That(cache.Memory.CompressedBytes, Is.EqualTo(untouched.Memory.CompressedBytes), $"was {memory}");
    }

    /// <summary>A factor that is a number in double precision and none in single is refused before a token is added.</summary>
    [TestCase(1e-60)]
    [TestCase(1e60)]
    public void A_scale_that_single_precision_does_not_hold_is_refused_in_time(double scale)
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New();
        foreach (int count in new[] { 30, 1, 4, 20 })
        {
            (Tensor query, Tensor keys, Tensor values) = (Random(4, count), Random(2, count), Random(2, count));
            int before = cache.Length;
            ArgumentException? failure = Assert.Catch<ArgumentException>(() => cache.Forward(query, keys, values, scale));
            Assert.That(failure!.ParamName, Is.EqualTo("scale"));
            Assert.That(cache.Length, Is.EqualTo(before), $"{count} tokens");
            cache.Forward(query, keys, values);
        }
    }

    /// <summary>A damaged page is found by the attention, after the tokens were added, and by the expansion of one of the sequences.</summary>
    [TestCase(1)]
    [TestCase(5)]
    [TestCase(40)]
    public unsafe void A_failure_half_way_leaves_everything_as_it_was(int count)
    {
        if (device != "cpu")
        {
            Assert.Ignore("The test damages a page through its address.");
        }

        using var scope = NewDisposeScope();
        manual_seed(2);
        using MustafarCache cache = New();
        using MustafarCache untouched = New();
        Tensor x = Random(2, 111);
        cache.Append(x, x);
        untouched.Append(x, x);
        Span<byte> page = new((void*)cache.PageAddresses(1)[1], 64);
        byte[] sound = page.ToArray();
        page.Fill(0xFF);
        Tensor y = Random(2, count);
        Assert.That(() => cache.Forward(y, y, y), Throws.TypeOf<InvalidDataException>());
        Assert.That(() => cache.Truncate(70), Throws.TypeOf<InvalidDataException>());
        Assert.That(cache.Lengths, Is.All.EqualTo(111));
        Assert.That(cache.CompressedLengths, Is.EqualTo(untouched.CompressedLengths));
        Assert.That(cache.PageAddresses(0), Has.Length.EqualTo(untouched.PageAddresses(0).Length));
        sound.CopyTo(page);
        Compare.Same(cache.Forward(y, y, y), untouched.Forward(y, y, y), "after the damage is mended");
        Compare.Same(cache.Attend(y), untouched.Attend(y), "and again");
    }

    /// <summary>An output for so many heads does not fit any address space; of one token's step it is made when the token is in the cache.</summary>
    [TestCase(0, 1, 0)]
    [TestCase(110, 1, 0)]
    [TestCase(111, 1, 0)]
    [TestCase(111, 5, 0)]
    [TestCase(111, 60, 0)]
    [TestCase(2, 1, 4)]
    [TestCase(3, 60, 4)]
    public void Memory_that_runs_out_for_the_output_leaves_everything_as_it_was(int past, int count, int sinks)
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        using MustafarCache cache = New(sinks);
        using MustafarCache untouched = New(sinks);
        if (past > 0)
        {
            Tensor x = Random(2, past);
            cache.Append(x, x);
            untouched.Append(x, x);
        }

        (Tensor query, Tensor keys, Tensor values) = (Random(4, count), Random(2, count), Random(2, count));
        Tensor tooMany = query.narrow(1, 0, 1).expand(2, 1L << 40, count, 64);
        Assert.That(() => cache.Forward(tooMany, keys, values), Throws.TypeOf<ExternalException>());
        if (past > 0)
        {
            Assert.That(() => cache.Attend(tooMany), Throws.TypeOf<ExternalException>());
        }

        Same(cache, untouched);
        Compare.Same(cache.Forward(query, keys, values), untouched.Forward(query, keys, values), "the same call with fewer heads");
        Same(cache, untouched);
    }

    /// <summary>The first sequence has its page when there is no memory for those of the second.</summary>
    [Test]
    public void Memory_that_runs_out_for_pages_leaves_everything_as_it_was()
    {
        const int Heads = 40, HeadDim = 256, Endless = int.MaxValue - 1000;
        using var scope = NewDisposeScope();
        MustafarOptions options = new() { KeySparsity = 0, ValueSparsity = 0, GroupSize = 512, LocalWindow = 0 };
        using MustafarCache cache = new(2, new() { NumKvHeads = Heads, HeadDim = HeadDim }, ScalarType.Float32, new torch.Device(device), options);
        Tensor x = randn(2, Heads, 3, HeadDim).to(device);
        cache.Append(x, x);
        Tensor endless = ones(1, 1, 1, HeadDim).to(device).expand(2, Heads, Endless, HeadDim);
        Assert.That(() => cache.Append(endless, endless, [1000, Endless]), Throws.TypeOf<ExternalException>());
        Assert.That(() => cache.Append(endless, endless, [Endless, Endless]), Throws.TypeOf<ExternalException>());
        Assert.That(cache.Lengths, Is.All.EqualTo(3));
        Assert.That(cache.CompressedLengths, Is.All.Zero);
        Assert.That(cache.PageAddresses(0), Is.Empty);
        using MustafarCache untouched = new(2, new() { NumKvHeads = Heads, HeadDim = HeadDim }, ScalarType.Float32, new torch.Device(device), options);
        untouched.Append(x, x);
        Compare.Same(cache.Attend(x), untouched.Attend(x), "what it holds");
    }

    /// <summary>The dense cache has written the tokens when it can't attend, with so many heads: not even NaN may stay behind.</summary>
    [TestCase(0, 3)]
    [TestCase(20, 1)]
    [TestCase(20, 3)]
    public void A_failure_half_way_leaves_a_dense_cache_as_it_was(int past, int count)
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        using DenseCache cache = new(2, s_shape, ScalarType.Float32, new torch.Device(device));
        using DenseCache untouched = new(2, s_shape, ScalarType.Float32, new torch.Device(device));
        if (past > 0)
        {
            Tensor x = Random(2, past);
            int[] counts = [past, past / 2];
            cache.Forward(x, x, x, counts: counts);
            untouched.Forward(x, x, x, counts: counts);
        }

        Tensor nan = full([2, 2, count, 64], double.NaN, dtype: ScalarType.Float32).to(device);
        Tensor tooMany = nan.narrow(1, 0, 1).expand(2, 1L << 40, count, 64);
        Assert.That(() => cache.Forward(tooMany, nan, nan), Throws.Exception);
        Assert.That(cache.Lengths, Is.EqualTo(untouched.Lengths));
        Tensor y = Random(2, 2);
        Compare.Same(cache.Forward(y, y, y, counts: [1, 2]), untouched.Forward(y, y, y, counts: [1, 2]), "tokens that come later");
    }

    /// <summary>A thread in a call finishes it, and finds the cache disposed at the next.</summary>
    [Test]
    public void Disposing_waits_for_the_call_of_another_thread()
    {
        using var scope = NewDisposeScope();
        Tensor x = Random(2, 64);
        for (int i = 0; i < 20; i++)
        {
            MustafarCache cache = New();
            using ManualResetEventSlim started = new();
            Task worker = Task.Run(() =>
            {
                while (true)
                {
                    cache.Append(x, x);
                    started.Set();
                }
            });
            started.Wait();
            Parallel.Invoke(cache.Dispose, cache.Dispose);
            Assert.That(async () => await worker, Throws.TypeOf<ObjectDisposedException>());
        }
    }

    /// <summary>Memory is back when a cache is disposed, however often.</summary>
    [Test]
    public void Disposing_frees_every_tensor()
    {
        using var scope = NewDisposeScope();
        Tensor x = Random(2, 300);
        using (MustafarCache warm = New())
        {
            warm.Forward(x, x, x).Dispose();
        }

        long before = Tensor.TotalCount;
        for (int i = 0; i < 20; i++)
        {
            MustafarCache cache = New();
            cache.Forward(x, x, x).Dispose();
            cache.Forward(x, x, x).Dispose();
            cache.Truncate(150);
            cache.Dispose();
            cache.Dispose();
        }

        Assert.That(Tensor.TotalCount, Is.EqualTo(before));
    }

    private static void Same(MustafarCache cache, MustafarCache expected)
    {
        Assert.That(cache.Lengths, Is.EqualTo(expected.Lengths));
        Assert.That(cache.CompressedLengths, Is.EqualTo(expected.CompressedLengths));
        for (int b = 0; b < cache.BatchSize; b++)
        {
            Assert.That(cache.PageAddresses(b), Has.Length.EqualTo(expected.PageAddresses(b).Length), $"pages of sequence {b}");
        }
    }

    private static void Fails(Action call)
    {
        TensorAccess.ForcedVariant = (CpuVariant)77;
        try
        {
            Assert.That(() => call(), Throws.ArgumentException.With.Message.Contains("cpu_variant"));
        }
        finally
        {
            TensorAccess.ForcedVariant = null;
        }
    }

    private MustafarCache New(int sinks = 0) =>
        new(2, s_shape, ScalarType.Float32, new torch.Device(device), Options with { SinkTokens = sinks });

    private Tensor Random(int heads, int tokens) => randn(2, heads, tokens, 64).to(device);
}
