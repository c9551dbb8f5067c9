using System.Globalization;
using System.Text.RegularExpressions;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Sequences;

/// <summary>Budgets and limits: what goes beyond them is refused before anything changes, and the others go on.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed partial class CacheLimitTests(string device) : TensorFixture
{
    private const int Layers = 2;
    private const int Group = 32;
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 64 };

    private static readonly MustafarOptions s_options = new() { LocalWindow = 0, GroupSize = Group };

    [Test]
    public void A_step_beyond_the_budget_is_refused_and_the_others_go_on()
    {
        using MustafarModelCache cache = New(new CacheLimits { MaxSequences = 3, BudgetTokens = 8 * Group });
        int one = cache.AddSequence(), two = cache.AddSequence();
        long empty = cache.Usage.UsedBytes;
        Step(cache, 5 * Group, one);
        Step(cache, 2 * Group, two);
        Assert.That(cache.Usage.FreeTokens, Is.EqualTo(Group));
        CacheUsage usage = cache.Usage;
        CacheBudgetException? refused = Assert.Throws<CacheBudgetException>(() => cache.BeginStep([one, two], Group));
        Assert.Multiple(() =>
        {
            Assert.That(refused!.FreeBytes, Is.EqualTo(usage.FreeBytes).And.Positive);
            Assert.That(refused.NeededBytes, Is.EqualTo(2 * refused.FreeBytes));
            Assert.That(cache.Usage, Is.EqualTo(usage));
            Assert.That((cache.LengthOf(one), cache.LengthOf(two)), Is.EqualTo((5 * Group, 2 * Group)));
        });
        Step(cache, Group, two);
        Assert.That(cache.Usage.FreeBytes, Is.Zero);
        Step(cache, Group - 1, one);
        Assert.That(() => cache.BeginStep([one], 1), Throws.TypeOf<CacheBudgetException>());
        cache.RemoveSequence(two);
        Step(cache, 1, one);
        cache.Truncate(one, 0);
        Assert.That(cache.Usage.FreeTokens, Is.EqualTo(8 * Group));
        Assert.That(cache.Usage.UsedBytes, Is.EqualTo(empty / 2));
    }

    /// <summary>The smallest budget that is named is enough, and what is allocated stays within any.</summary>
    [Test]
    public void A_budget_of_bytes_is_kept([Values(1, 7)] int sequences, [Values(null, 1000)] int? maxLength)
    {
        CacheLimits limits = new() { MaxSequences = sequences, MaxLength = maxLength };
        CacheBudgetException? tooSmall = Assert.Throws<CacheBudgetException>(() => New(limits with { BudgetBytes = 1 }));
        long least = long.Parse(Number().Match(tooSmall!.Message).Value, CultureInfo.InvariantCulture);
        Assert.That(() => New(limits with { BudgetBytes = least - 1 }), Throws.TypeOf<CacheBudgetException>());
        foreach (long budget in new[] { least, least + 12_345, 3 * least })
        {
            using MustafarModelCache cache = New(limits with { BudgetBytes = budget });
            int sequence = cache.AddSequence();
            while (cache.Usage.FreeTokens > 0 && cache.LengthOf(sequence) < (maxLength ?? int.MaxValue) - Group)
            {
                Step(cache, Group, sequence);
            }

            Assert.That(cache.Usage.ReservedBytes, Is.LessThanOrEqualTo(budget));
            Assert.That(cache.Usage.UsedBytes, Is.LessThanOrEqualTo(cache.Usage.ReservedBytes));
        }
    }

    [Test]
    public void A_budget_of_bytes_needs_the_number_of_sequences() => Assert.That(
        () => New(new CacheLimits { BudgetBytes = 1 << 20 }), Throws.ArgumentException.With.Message.Contains("MaxSequences"));

    [Test]
    public void A_dense_cache_keeps_its_budget()
    {
        CacheLimits limits = new() { MaxSequences = 2, BudgetTokens = 2 * 128 };
        using DenseModelCache cache = new(Layers, s_shape, ScalarType.Float32, new torch.Device(device), limits: limits);
        int one = cache.AddSequence(), two = cache.AddSequence();
        Step(cache, 100, one);
        Assert.That(cache.Usage.FreeTokens, Is.Zero);
        CacheUsage usage = cache.Usage;
        Assert.That(() => cache.BeginStep([one, two], 29), Throws.TypeOf<CacheBudgetException>()
            .With.Property(nameof(CacheBudgetException.FreeBytes)).EqualTo(usage.FreeBytes));
        Assert.That(cache.Usage, Is.EqualTo(usage));
        Step(cache, 28, two, one);
        Assert.That(cache.Usage.UsedBytes, Is.EqualTo((128 + 28) * cache.Usage.ReservedBytes / 256));
        Assert.That(
            () => new DenseModelCache(Layers, s_shape, ScalarType.Float32, limits: limits with { BudgetTokens = 100 }).Dispose(),
            Throws.TypeOf<CacheBudgetException>());
    }

    [Test]
    public void Limits_are_positive() => Assert.Multiple(() =>
    {
        Assert.That(() => new CacheLimits { MaxSequences = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
        Assert.That(() => new CacheLimits { MaxLength = -1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
        Assert.That(() => new CacheLimits { MaxStepTokens = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
        Assert.That(() => new CacheLimits { BudgetBytes = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
        Assert.That(() => new CacheLimits { BudgetTokens = -5 }, Throws.TypeOf<ArgumentOutOfRangeException>());
    });

    [Test]
    public void Each_limit_is_named()
    {
        using MustafarModelCache cache = New(new CacheLimits { MaxSequences = 2, MaxLength = 50, MaxStepTokens = 60 });
        int one = cache.AddSequence(), two = cache.AddSequence();
        Assert.That(() => cache.AddSequence(), Throws.TypeOf<CacheLimitException>().With.Message.Contains("2 sequences"));
        Assert.That(() => cache.Fork(one), Throws.TypeOf<CacheLimitException>().With.Message.Contains("2 sequences"));
        Assert.That(() => cache.BeginStep([one, two], 40), Throws.TypeOf<CacheLimitException>().With.Message.Contains("at most 60"));
        Step(cache, 30, one, two);
        Assert.That(() => cache.BeginStep([two, one], 21), Throws.TypeOf<CacheLimitException>().With.Message.Contains("at most 50"));
        Step(cache, 20, two);
        Assert.That((cache.LengthOf(one), cache.LengthOf(two)), Is.EqualTo((30, 50)));
        cache.RemoveSequence(one);
        Assert.That(cache.Fork(two), Is.EqualTo(2), "numbers are not used again");
    }

    [Test]
    public void Room_is_made_for_as_many_sequences_as_were_asked_for([Values] bool dense)
    {
        using ModelKeyValueCache cache = dense
            ? new DenseModelCache(Layers, s_shape, ScalarType.Float32, new torch.Device(device))
            : New(new CacheLimits());
        int first = cache.AddSequence();
        Step(cache, 3 * Group, first);
        long one = cache.Memory.WindowBytes;
        cache.EnsureCapacity(5);
        cache.EnsureCapacity(0);
        Assert.That(cache.Memory.WindowBytes, Is.EqualTo(5 * one));
        for (int i = 1; i < 5; i++)
        {
            Step(cache, 1, first, cache.Fork(first));
        }

        Assert.That(cache.Sequences.Select(cache.LengthOf), Is.EqualTo(new[] { 100, 97, 98, 99, 100 }));
        Assert.That(cache.Memory.WindowBytes, Is.EqualTo(5 * one));
        using CacheStep step = cache.BeginStep([first], 1);
        Assert.That(() => cache.EnsureCapacity(6), Throws.InvalidOperationException);
    }

    [Test]
    public void Room_beyond_a_limit_is_refused()
    {
        using MustafarModelCache cache = New(new CacheLimits { MaxSequences = 2 });
        cache.EnsureCapacity(2);
        Assert.That(() => cache.EnsureCapacity(3), Throws.TypeOf<CacheLimitException>().With.Message.Contains("at most 2"));
        Assert.That(() => cache.EnsureCapacity(-1), Throws.TypeOf<ArgumentOutOfRangeException>());
    }

    [Test]
    public void Unknown_sequences_are_named()
    {
        using MustafarModelCache cache = New(new CacheLimits());
        int gone = cache.AddSequence(), here = cache.AddSequence();
        cache.RemoveSequence(gone);
        Assert.Multiple(() =>
        {
            foreach (int unknown in new[] { gone, 2, -1, int.MaxValue })
            {
                foreach (Action call in new Action[]
                {
                    () => cache.RemoveSequence(unknown),
                    () => cache.Fork(unknown),
                    () => cache.Truncate(unknown, 0),
                    () => cache.LengthOf(unknown),
                    () => cache.PositionOf(unknown),
                    () => cache.CompressedLengthOf(unknown),
                    () => cache.BeginStep([here, unknown], 1),
                })
                {
                    Assert.That(() => call(), Throws.TypeOf<SequenceNotFoundException>()
                        .With.Property(nameof(SequenceNotFoundException.Sequence)).EqualTo(unknown));
                }
            }
        });
        Step(cache, 1, here);
    }

    [Test]
    public void Bad_steps_are_named()
    {
        using MustafarModelCache cache = New(new CacheLimits());
        int one = cache.AddSequence(), two = cache.AddSequence();
        Assert.Multiple(() =>
        {
            Refused("sequences", () => cache.BeginStep([], 1));
            Refused("sequences", () => cache.BeginStep([one, two, one], 1));
            Refused("tokens", () => cache.BeginStep([one], 0));
            Refused("counts", () => cache.BeginStep([one, two], 3, [1]));
            Refused("counts", () => cache.BeginStep([one, two], 3, [1, 4]));
            Refused("counts", () => cache.BeginStep([one, two], 3, [-1, 2]));
            Refused("length", () => cache.Truncate(one, 1));
            Refused("length", () => cache.Truncate(one, -1));
        });
        Step(cache, 3, two, one);
    }

    [Test]
    public void Bad_layers_are_named() => Assert.Multiple(() =>
    {
        NotMade("numLayers", () => new MustafarModelCache(0, s_shape, ScalarType.Float32));
        NotMade("layers", () => new MustafarModelCache([], s_shape, ScalarType.Float32));
        NotMade("layers", () => new MustafarModelCache(null!, s_shape, ScalarType.Float32));
        NotMade("layers", () => new MustafarModelCache([s_options, null!], s_shape, ScalarType.Float32));
        NotMade("layers", () => new MustafarModelCache([s_options, s_options with { GroupSize = 64 }], s_shape, ScalarType.Float32));
        NotMade("layers", () => new MustafarModelCache([s_options, s_options with { SinkTokens = 1 }], s_shape, ScalarType.Float32));
        NotMade("dtype", () => new MustafarModelCache(1, s_shape, ScalarType.Float64));
        NotMade("numLayers", () => new DenseModelCache(0, s_shape, ScalarType.Float32));
        NotMade("slidingWindows", () => new DenseModelCache([], s_shape, ScalarType.Float32));
        NotMade("slidingWindows", () => new DenseModelCache([null, 0], s_shape, ScalarType.Float32));
        NotMade("shape", () => new DenseModelCache(1, null!, ScalarType.Float32));
        NotMade("shape", () => new MustafarModelCache(1, null!, ScalarType.Float32));
    });

    /// <summary>Sequences that join, leave, fork and grow move nothing of the others.</summary>
    [Test]
    public void Pages_stay_where_they_are()
    {
        using MustafarModelCache cache = New(new CacheLimits { MaxSequences = 4, MaxLength = 100 * Group });
        int one = cache.AddSequence();
        Step(cache, 20 * Group, one);
        nint[] before = cache.PageAddresses(one);
        CacheUsage alone = cache.Usage;
        int fork = cache.Fork(one);
        Assert.That(cache.PageAddresses(fork), Is.EqualTo(before));
        int other = cache.AddSequence();
        Step(cache, 50 * Group, other, fork);
        cache.RemoveSequence(fork);
        cache.RemoveSequence(other);
        Assert.That(cache.PageAddresses(one), Is.EqualTo(before));
        Assert.That(cache.Usage with { ReservedBytes = alone.ReservedBytes }, Is.EqualTo(alone));
    }

    private static void Refused(string parameter, Action call) =>
        Assert.That(() => call(), Throws.InstanceOf<ArgumentException>().With.Property(nameof(ArgumentException.ParamName)).EqualTo(parameter));

    private static void NotMade(string parameter, Func<ModelKeyValueCache> make) => Refused(parameter, () => make().Dispose());

    [GeneratedRegex("[0-9]+")]
    private static partial Regex Number();

    private void Step(ModelKeyValueCache cache, int tokens, params int[] sequences)
    {
        using CacheStep step = cache.BeginStep(sequences, tokens);
        Tensor x = randn(sequences.Length, 2, tokens, 64).to(device);
        for (int layer = 0; layer < Layers; layer++)
        {
            step.Attend(layer, x, x, x);
        }

        step.Commit();
    }

    private MustafarModelCache New(CacheLimits limits) =>
        new(Layers, s_shape, ScalarType.Float32, new torch.Device(device), s_options, limits);
}
