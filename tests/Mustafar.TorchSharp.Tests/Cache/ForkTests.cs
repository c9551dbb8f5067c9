using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>A fork is what a cache would be that saw the parents' tokens itself.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class ForkTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 1, HeadDim = 64 };

    [TestCase(null)]
    [TestCase(40)]
    public void A_fork_goes_on_as_its_parents_would(int? window)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        MustafarOptions options = new() { LocalWindow = 16, GroupSize = 32, SlidingWindow = window };
        int[] parents = [1, 0, 1];
        using MustafarCache cache = New(2), untouched = New(2), expected = New(3);
        (Tensor prompt, Tensor next) = (Random(2, 200), Random(3, 70));
        int[] counts = [200, 90];
        cache.Append(prompt, prompt, counts);
        untouched.Append(prompt, prompt, counts);
        expected.Append(Of(prompt), Of(prompt), [90, 200, 90]);
        MustafarCache fork = cache.Fork(parents);
        Assert.That(fork.PageAddresses(0), Is.EqualTo(cache.PageAddresses(1)).And.Not.Empty);
        cache.Truncate([180, 90]);
        untouched.Truncate([180, 90]);
        Compare.Same(fork.Forward(next, next, next), expected.Forward(next, next, next), "a chunk");
        Tensor one = Random(3, 1);
        Compare.Same(fork.Forward(one, one, one), expected.Forward(one, one, one), "a token");
        Tensor two = Random(2, 60);
        Compare.Same(cache.Forward(two, two, two), untouched.Forward(two, two, two), "the parent");
        fork.Dispose();
        Compare.Same(cache.Forward(two, two, two), untouched.Forward(two, two, two), "the parent alone");

        MustafarCache orphan = cache.Fork([0, 1]);
        cache.Dispose();
        Compare.Same(orphan.Forward(two, two, two), untouched.Forward(two, two, two), "a fork whose parent is gone");
        orphan.Dispose();

        MustafarCache New(int batch) => new(batch, s_shape, ScalarType.Float32, new Device(device), options);
        Tensor Of(Tensor tensor) => stack([.. parents.Select(parent => tensor[parent])]);
    }

    [Test]
    public void A_fork_of_a_dense_cache_goes_on_as_its_parents_would()
    {
        using var scope = NewDisposeScope();
        using DenseCache cache = new(2, s_shape, ScalarType.Float32, new Device(device));
        using DenseCache expected = new(3, s_shape, ScalarType.Float32, new Device(device));
        using (KeyValueCache empty = cache.Fork([1]))
        {
            Assert.That(empty.Length, Is.Zero);
        }

        (Tensor prompt, Tensor next) = (Random(2, 20), Random(3, 4));
        Tensor copies = stack([prompt[1], prompt[0], prompt[1]]);
        cache.Forward(prompt, prompt, prompt, counts: [20, 9]);
        expected.Forward(copies, copies, copies, counts: [9, 20, 9]);
        using DenseCache fork = cache.Fork([1, 0, 1]);
        cache.Clear();
        Assert.That(fork.Lengths, Is.EqualTo(expected.Lengths));
        Compare.Same(fork.Forward(next, next, next), expected.Forward(next, next, next), "next tokens");
    }

    [Test]
    public void Shared_pages_are_counted_once_and_freed_with_the_last()
    {
        using var scope = NewDisposeScope();
        Tensor x = Random(1, 3000);
        using MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device));
        cache.Append(x, x);
        long alone = cache.Memory.CompressedBytes;
        long tensors = Tensor.TotalCount;
        for (int i = 0; i < 20; i++)
        {
            using MustafarCache fork = cache.Fork([0]);
            Assert.That((cache.Memory + fork.Memory).CompressedBytes, Is.LessThan(alone * 1.05));
        }

        Assert.That(cache.Memory.CompressedBytes, Is.EqualTo(alone));
        Assert.That(Tensor.TotalCount, Is.EqualTo(tensors));
        cache.Clear();
        cache.Append(x, x);
        Assert.That(cache.Memory.CompressedBytes, Is.EqualTo(alone), "the pages came back");
    }

    /// <summary>Forks that nobody disposes: once they are collected, their share and their pages are the others' again.</summary>
    [TestCase(0)]
    [TestCase(3000)]
    public void Forks_that_are_dropped_return_their_pages(int tokensOfTheirOwn)
    {
        const int Rounds = 20;
        using var scope = NewDisposeScope();
        Tensor x = Random(1, 3000);
        using MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device));
        cache.Append(x, x);
        long alone = cache.Memory.CompressedBytes;
        for (int i = 0; i < Rounds; i++)
        {
            Drop();
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }

        // A conservative stack may hold the last fork. If none were collected, this cache's part would be 1/21; if none returned its
        // pages, there would be 21 times as many.
        Assert.That(cache.Memory.CompressedBytes, Is.InRange(alone / 2, alone * 3.1));

        [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
        void Drop()
        {
            MustafarCache fork = cache.Fork([0]);
            if (tokensOfTheirOwn > 0)
            {
                using Tensor own = x.narrow(2, 0, tokensOfTheirOwn);
                fork.Append(own, own);
            }
        }
    }

    /// <summary>The parent is dropped instead: its fork goes on with the pages that they shared.</summary>
    [Test]
    public void A_fork_outlives_a_parent_that_is_dropped()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        (Tensor prompt, Tensor next) = (Random(1, 500), Random(1, 70));
        using MustafarCache expected = new(1, s_shape, ScalarType.Float32, new Device(device));
        expected.Append(prompt, prompt);
        using MustafarCache fork = ForkOfDropped();
        for (int i = 0; i < 5; i++)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            Compare.Same(fork.Forward(next, next, next), expected.Forward(next, next, next), $"step {i}");
        }

        [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
        MustafarCache ForkOfDropped()
        {
            MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device));
            cache.Append(prompt, prompt);
            return cache.Fork([0]);
        }
    }

    [Test]
    public void Parents_that_are_none_are_named()
    {
        MustafarCache cache = new(2, s_shape, ScalarType.Float32, new Device(device));
        Assert.That(() => cache.Fork([]), Throws.ArgumentException.With.Property("ParamName").EqualTo("parents"));
        Assert.That(() => cache.Fork([2]), Throws.TypeOf<ArgumentOutOfRangeException>().With.Message.Contains("0 to 1"));
        cache.Dispose();
        Assert.That(() => cache.Fork([0]), Throws.TypeOf<ObjectDisposedException>());
    }

    private Tensor Random(int batch, int tokens) => randn(batch, 1, tokens, 64).to(device);
}
