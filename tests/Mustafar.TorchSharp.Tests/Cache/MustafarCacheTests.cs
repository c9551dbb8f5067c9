using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class MustafarCacheTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 1, HeadDim = 64 };

    [Test]
    public void Attending_an_empty_cache_gives_zeros()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(2, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device));
        Assert.That(Values.Of(cache.Attend(randn(2, 4, 3, 64, device: device))), Is.All.Zero);
    }

    [Test]
    public void At_70_percent_a_cache_takes_at_most_40_percent_of_dense()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(1, new() { NumKvHeads = 8, HeadDim = 128 }, ScalarType.Float16, new Device(device));
        Tensor x = randn(1, 8, 4096, 128, dtype: ScalarType.Float16, device: device);
        cache.Append(x, x);
        TestContext.Out.WriteLine(cache.Memory);
        Assert.That(cache.Memory.RatioToDense, Is.LessThanOrEqualTo(0.40));
        Assert.That(cache.Memory.DenseBytes, Is.EqualTo(2 * 8 * 4096 * 128 * 2));
    }

    [Test]
    public void Compressed_tokens_stay_where_they_are()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device));
        Tensor x = randn(1, 1, 640, 64, device: device); // 9 pages: long enough for slabs of several
        cache.Append(x, x);
        nint[] before = cache.PageAddresses(0);
        long bytes = cache.Memory.CompressedBytes;
        for (int i = 0; i < 40; i++)
        {
            cache.Append(x, x);
        }

        Assert.That(cache.PageAddresses(0).Take(before.Length), Is.EqualTo(before));
        Assert.That(cache.PageAddresses(0), Has.Length.EqualTo(cache.CompressedLengths[0] / cache.Options.GroupSize).And.Unique);
        Assert.That(cache.Memory.CompressedBytes, Is.GreaterThan(bytes));
    }

    [Test]
    public void Pages_are_used_again_after_Clear()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(2, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device));
        Tensor x = randn(2, 2, 300, 64, device: device);
        cache.Append(x, x);
        long bytes = cache.Memory.CompressedBytes;
        for (int i = 0; i < 20; i++)
        {
            cache.Clear();
            Assert.That(cache.Length, Is.Zero);
            cache.Append(x, x);
        }

        Assert.That(cache.Memory.CompressedBytes, Is.EqualTo(bytes));
    }

    [Test]
    public void A_cache_filled_in_inference_mode_serves_outside_of_it()
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(1, 1, 150, 64, device: device);
        MustafarCache cache;
        using (inference_mode())
        {
            cache = new MustafarCache(1, s_shape, ScalarType.Float32, new Device(device));
            cache.Append(x, x);
        }

        using (cache)
        {
            Assert.That(() => cache.Forward(x, x, x), Throws.Nothing);
            Assert.That(() => cache.Truncate(100), Throws.Nothing);
        }
    }

    [Test]
    public void Bad_input_is_named_and_leaves_the_cache_as_it_was()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(2, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device));
        Tensor x = randn(2, 2, 150, 64, device: device);
        Tensor q = randn(2, 4, 1, 64, device: device);
        cache.Append(x, x);
        Tensor before = cache.Attend(q).clone();
        (string Name, Action Call, string Parameter, string Says)[] cases =
        [
            ("dtype", () => cache.Append(x.to(ScalarType.Float16), x), "keys", "Float16"),
            ("values' dtype", () => cache.Append(x, x.to(ScalarType.BFloat16)), "values", "BFloat16"),
            ("rank", () => cache.Append(x[0], x), "keys", "[2, 150, 64]"),
            ("heads", () => cache.Append(x.narrow(1, 0, 1), x), "keys", "[2, 1, 150, 64]"),
            ("head_dim", () => cache.Append(x.narrow(3, 0, 32), x), "keys", "32"),
            ("tokens", () => cache.Append(x, x.narrow(2, 0, 149)), "values", "149"),
            ("no tokens", () => cache.Append(x.narrow(2, 0, 0), x.narrow(2, 0, 0)), "keys", "tokens"),
            ("query heads", () => cache.Attend(randn(2, 3, 1, 64, device: device)), "query", "multiple of 2"),
            ("query dtype", () => cache.Attend(q.to(ScalarType.Float16)), "query", "Float16"),
            ("queries", () => cache.Forward(q, x, x), "query", "150"),
            ("scale", () => cache.Attend(q, double.NaN), "scale", "finite"),
            ("negative scale", () => cache.Attend(q, -1), "scale", "positive"),
            ("counts", () => cache.Append(x, x, [1]), "counts", "2"),
            ("count", () => cache.Append(x, x, [1, 151]), "counts", "151"),
            ("length", () => cache.Truncate(151), "length", "150"),
            ("lengths", () => cache.Truncate([1, -1]), "lengths", "-1"),
        ];
        foreach ((string name, Action call, string parameter, string says) in cases)
        {
            ArgumentException? failure = Assert.Catch<ArgumentException>(call, name);
            Assert.That(failure!.ParamName, Is.EqualTo(parameter), name);
            Assert.That(failure.Message, Does.Contain(says), name);
            Assert.That(cache.Lengths, Is.EqualTo(new[] { 150, 150 }), name);
        }

        Compare.Same(cache.Attend(q), before.to(ScalarType.Float32), "after all");
    }

    [Test]
    public void Bad_sizes_are_named()
    {
        Device where = new(device);
        Assert.Multiple(() =>
        {
            Assert.That(() => new MustafarCache(0, s_shape, ScalarType.Float32, where), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new MustafarCache(1, null!, ScalarType.Float32, where), Throws.ArgumentNullException.With.Property("ParamName").EqualTo("shape"));
            Assert.That(
                () => new MustafarCache(1, s_shape with { HeadDim = 72 }, ScalarType.Float32, where), Throws.TypeOf<NotSupportedException>().With.Message.Contains("72"));
            Assert.That(() => new MustafarCache(1, s_shape, ScalarType.Int32, where), Throws.ArgumentException.With.Message.Contains("Int32"));
            Assert.That(() => new MustafarCache(1, s_shape, ScalarType.Float32, new Device("meta")), Throws.TypeOf<NotSupportedException>().With.Message.Contains("meta"));
        });
    }

    [Test]
    public void After_Dispose_every_use_says_so()
    {
        using var scope = NewDisposeScope();
        MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device));
        Tensor x = randn(1, 1, 3, 64, device: device);
        cache.Dispose();
        cache.Dispose();
        Assert.Multiple(() =>
        {
            Assert.That(() => cache.Append(x, x), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => cache.Attend(x), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => cache.Forward(x, x, x), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => cache.Truncate(0), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => cache.Clear(), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => cache.Memory, Throws.TypeOf<ObjectDisposedException>());
        });
    }

    [Test]
    public void Two_threads_at_once_either_both_finish_or_one_is_refused()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(1, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device));
        Tensor x = randn(1, 2, 64, 64, device: device);
        int refused = 0;
        Parallel.For(0, 200, new ParallelOptions { MaxDegreeOfParallelism = 4 }, _ =>
        {
            try
            {
                cache.Append(x, x);
            }
            catch (InvalidOperationException)
            {
                Interlocked.Increment(ref refused);
            }
        });
        Assert.That(cache.Length, Is.EqualTo((200 - refused) * 64));
    }

    /// <summary>Sizes can be read, and the cache disposed, whatever another thread does with it.</summary>
    [TestCase(false)]
    [TestCase(true)]
    public void Any_thread_may_read_sizes_and_dispose(bool dense)
    {
        using var scope = NewDisposeScope();
        Tensor x = randn(2, 1, 40, 64, device: device);
        for (int round = 0; round < 10; round++)
        {
            KeyValueCache cache = dense
                ? new DenseCache(2, s_shape, ScalarType.Float32, new Device(device))
                : new MustafarCache(2, s_shape, ScalarType.Float32, new Device(device), new MustafarOptions { SinkTokens = 2, SlidingWindow = 70 });
            using CountdownEvent started = new(2);
            Task steps = Task.Run(() => UntilDisposed(() =>
            {
                cache.Forward(x, x, x).Dispose();
                if (cache.Length > 400)
                {
                    cache.Clear();
                }
            }));
            Task sizes = Task.Run(() => UntilDisposed(() =>
            {
                Assert.That(cache.Lengths, Has.Count.EqualTo(2).And.All.InRange(0, 440));
                Assert.That(cache.Length, Is.InRange(0, 440));
                Assert.That(cache.Memory.TotalBytes, Is.Not.Negative);
            }));
            started.Wait();
            cache.Dispose();
            Task.WaitAll(steps, sizes);

            void UntilDisposed(Action call)
            {
                for (bool first = true; ; first = false)
                {
                    try
                    {
                        call();
                    }
                    catch (ObjectDisposedException)
                    {
                        return;
                    }

                    if (first)
                    {
                        started.Signal();
                    }
                }
            }
        }
    }

    /// <summary>What a call checks of the tokens holds until it is done: another thread can't take them away in between.</summary>
    [Test]
    public void Shortening_is_checked_against_the_tokens_that_it_finds()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device));
        Tensor x = randn(1, 1, 64, 64, device: device);
        using CancellationTokenSource done = new();
        Task other = Task.Run(() =>
        {
            while (!done.IsCancellationRequested)
            {
                // More tokens than there are after Clear; as many as there are before.
                Tried(() => cache.Truncate(64));
                Tried(() => cache.Truncate([64]));
            }
        });
        for (int i = 0; i < 2000; i++)
        {
            Until(() => cache.Append(x, x));
            Assert.That(cache.Length, Is.EqualTo(64), $"round {i}");
            Until(cache.Clear);
        }

        done.Cancel();
        other.Wait();

        static bool Tried(Action call)
        {
            try
            {
                call();
                return true;
            }
            catch (Exception refusal) when (refusal is InvalidOperationException or ArgumentOutOfRangeException)
            {
                return false;
            }
        }

        static void Until(Action call)
        {
            while (!Tried(call))
            {
                Thread.Yield();
            }
        }
    }

    /// <summary>Each thread has its own fork: they share pages and the pool, and give the same as one after the other.</summary>
    [Test]
    public void Forks_on_threads_of_their_own_do_not_disturb_each_other()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        MustafarOptions options = new() { LocalWindow = 0, GroupSize = 32, SinkTokens = 2 };
        using MustafarCache cache = new(1, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device), options);
        Tensor prompt = randn(1, 2, 200, 64, device: device);
        cache.Append(prompt, prompt);
        Tensor[] blocks = [.. Enumerable.Range(0, 4).Select(_ => randn(1, 2, 40, 64, device: device))];
        Tensor[] expected = [.. blocks.Select(Continue)];
        Tensor[] actual = new Tensor[blocks.Length];
        Parallel.For(0, blocks.Length, i => actual[i] = Continue(blocks[i]));
        for (int i = 0; i < blocks.Length; i++)
        {
            Compare.Same(actual[i], expected[i].to(ScalarType.Float32), $"fork {i}");
            actual[i].Dispose();
        }

        Tensor Continue(Tensor block)
        {
            MustafarCache fork;
            lock (blocks)
            {
                fork = cache.Fork([0]);
            }

            using (fork)
            {
                for (int i = 0; i < 20; i++)
                {
                    fork.Truncate(150);
                    fork.Forward(block, block, block).Dispose();
                    fork.Forward(block, block, block).Dispose();
                }

                return fork.Attend(block);
            }
        }
    }

    /// <summary>Each thread has a cache of its own.</summary>
    [Test]
    public void Caches_on_threads_of_their_own_do_not_disturb_each_other()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        Tensor[] inputs = [.. Enumerable.Range(0, 4).Select(_ => randn(1, 2, 300, 64, device: device))];
        Tensor[] expected = [.. inputs.Select(Decode)];
        Tensor[] actual = new Tensor[inputs.Length];
        Parallel.For(0, inputs.Length, i => actual[i] = Decode(inputs[i]));
        for (int i = 0; i < inputs.Length; i++)
        {
            Compare.Same(actual[i], expected[i].to(ScalarType.Float32), $"cache {i}");
            actual[i].Dispose();
        }

        Tensor Decode(Tensor input)
        {
            using MustafarCache cache = new(1, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device));
            using (Tensor prompt = input.narrow(2, 0, 200))
            {
                cache.Forward(prompt, prompt, prompt).Dispose();
            }

            for (int i = 200; i < 299; i++)
            {
                using Tensor token = input.narrow(2, i, 1);
                cache.Forward(token, token, token).Dispose();
            }

            using Tensor last = input.narrow(2, 299, 1);
            return cache.Forward(last, last, last);
        }
    }

    /// <summary>The number of threads may change between steps.</summary>
    [Test]
    public void A_step_takes_any_number_of_threads()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        using MustafarCache cache = new(2, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device));
        ReferenceCache reference = new(2, cache.Options, 64);
        int threads = get_num_threads();
        try
        {
            foreach (int count in new[] { 1, 3, 2, 16, 1 })
            {
                set_num_threads(count);
                Tensor x = randn(2, 2, 60, 64, device: device);
                Tensor expected = reference.Forward(x, x, x, 0.125, [60, 60]);
                Compare.Close(cache.Forward(x, x, x), expected, 1e-5, 1e-5, $"60 tokens with {count} threads");
                Tensor one = x.narrow(2, 0, 1);
                expected = reference.Forward(one, one, one, 0.125, [1, 1]);
                Compare.Close(cache.Forward(one, one, one), expected, 1e-5, 1e-5, $"a token with {count} threads");
            }
        }
        finally
        {
            set_num_threads(threads);
        }
    }

    /// <summary>A cache that nobody disposes leaves its tensors to their finalisers.</summary>
    [Test]
    public void A_forgotten_cache_frees_its_tensors()
    {
        Forget(1);
        Collect();
        long before = Tensor.TotalCount;
        Forget(50);
        Collect();
        Assert.That(Tensor.TotalCount, Is.LessThanOrEqualTo(before + 5), "a conservative stack may hold the last one");

        [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
        void Forget(int count)
        {
            using Tensor x = randn(1, 1, 100, 64).to(device);
            for (int i = 0; i < count; i++)
            {
                MustafarCache cache = new(1, s_shape, ScalarType.Float32, new Device(device), new MustafarOptions { SinkTokens = 4 });
                cache.Append(x, x);
                cache.Fork([0]).Append(x, x);
            }
        }

        static void Collect()
        {
            for (int i = 0; i < 3; i++)
            {
                GC.Collect();
                GC.WaitForPendingFinalizers();
            }
        }
    }

    [Test]
    public void Memory_of_the_process_stays_flat_over_many_steps()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(1, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device));
        Tensor x = randn(1, 2, 1, 64, device: device);
        void Steps(int count)
        {
            for (int i = 0; i < count; i++)
            {
                if (cache.Length >= 512)
                {
                    cache.Clear();
                }

                cache.Forward(x, x, x).Dispose();
            }

            GC.Collect();
            GC.WaitForPendingFinalizers();
        }

        Steps(2000);
        long process = Environment.WorkingSet;
        long managed = GC.GetTotalMemory(forceFullCollection: true);
        long tensors = Tensor.TotalCount;
        Steps(4000);
        Assert.That(Tensor.TotalCount, Is.LessThanOrEqualTo(tensors));
        Assert.That(GC.GetTotalMemory(forceFullCollection: true) - managed, Is.LessThan(256 << 10));
        // 4 KB a step would be 16 MB; what earlier tests left behind moves the process by less.
        Assert.That(Environment.WorkingSet - process, Is.LessThan(16 << 20));
    }
}
