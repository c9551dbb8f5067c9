using Mustafar.Native;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Sequences;

/// <summary>A step is done in all layers or in none.</summary>
[TestFixtureSource(nameof(Fixtures))]
internal sealed class CacheStepTests(string device, bool dense) : TensorFixture
{
    private const int Layers = 3;
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = 64 };

    private static readonly MustafarOptions s_options = new() { LocalWindow = 16, GroupSize = 32 };

    private static IEnumerable<object[]> Fixtures =>
        TestDevices.All.SelectMany(device => new object[][] { [device, false], [device, true] });

    [SetUp]
    public void Seed() => manual_seed(1);

    /// <summary>Blocks that compress, that fill the sinks, and that take the places of all dense tokens in the ring.</summary>
    [Test]
    public void A_step_that_is_given_up_leaves_no_trace(
        [Values(0, 2, 79, 111)] int past, [Values(1, 5, 60, 200)] int count, [Values(0, 4)] int sinks, [Values(1, Layers)] int layers)
    {
        using ModelKeyValueCache cache = New(sinks), untouched = New(sinks);
        int[] sequences = Filled(cache, untouched, past);
        CacheUsage usage = cache.Usage;
        using (CacheStep step = cache.BeginStep(sequences, count))
        {
            Attend(step, layers, Random(count));
        }

        Assert.That(cache.Usage.UsedBytes, Is.EqualTo(usage.UsedBytes));
        Same(cache, untouched, sequences, count);
    }

    /// <summary>The library refuses the work in a later layer, after all arguments were found good.</summary>
    [TestCase(0, 100, 0)]
    [TestCase(79, 1, 0)]
    [TestCase(111, 5, 4)]
    [TestCase(111, 60, 4)]
    public void A_layer_that_fails_leaves_no_trace(int past, int count, int sinks)
    {
        if (device != "cpu" || dense)
        {
            Assert.Ignore("An unknown instruction set is refused by the CPU's part of the library, which dense attention does not use.");
        }

        using ModelKeyValueCache cache = New(sinks), untouched = New(sinks);
        int[] sequences = Filled(cache, untouched, past);
        (Tensor Query, Tensor Keys, Tensor Values) x = Random(count);
        CacheStep step = cache.BeginStep(sequences, count);
        step.Attend(0, x.Query, x.Keys, x.Values);
        TensorAccess.ForcedVariant = (CpuVariant)77;
        try
        {
            Assert.That(() => step.Attend(1, x.Query, x.Keys, x.Values), Throws.ArgumentException.With.Message.Contains("cpu_variant"));
        }
        finally
        {
            TensorAccess.ForcedVariant = null;
        }

        Assert.That(() => step.Attend(2, x.Query, x.Keys, x.Values), Throws.InvalidOperationException.With.Message.Contains("Layer 1 failed"));
        Assert.That(step.Commit, Throws.InvalidOperationException.With.Message.Contains("Layer 1 failed"));
        step.Dispose();
        Same(cache, untouched, sequences, count);
    }

    /// <summary>An output for so many heads does not fit any address space.</summary>
    [Test]
    public void Memory_that_runs_out_for_an_output_leaves_no_trace([Values(1, 60)] int count)
    {
        if (dense)
        {
            Assert.Ignore("Dense attention looks for NaN in all of the queries first.");
        }

        using ModelKeyValueCache cache = New(0), untouched = New(0);
        int[] sequences = Filled(cache, untouched, past: 111);
        (Tensor query, Tensor keys, Tensor values) = Random(count);
        using (CacheStep step = cache.BeginStep(sequences, count))
        {
            step.Attend(0, query, keys, values);
            Tensor tooMany = query.narrow(1, 0, 1).expand(2, 1L << 40, count, 64);
            Assert.That(() => step.Attend(1, tooMany, keys, values), Throws.Exception);
        }

        Same(cache, untouched, sequences, count);
    }

    [Test]
    public void Bad_arguments_are_named_and_the_step_goes_on()
    {
        using ModelKeyValueCache cache = New(0);
        int[] sequences = [cache.AddSequence(), cache.AddSequence()];
        (Tensor query, Tensor keys, Tensor values) = Random(3);
        using CacheStep step = cache.BeginStep(sequences, 3, [3, 1]);
        Assert.Multiple(() =>
        {
            Assert.That(step.Sequences, Is.EqualTo(sequences));
            Assert.That(step.Counts, Is.EqualTo(new[] { 3, 1 }));
            Refused("layer", () => step.Attend(-1, query, keys, values));
            Refused("layer", () => step.Attend(Layers, query, keys, values));
            Refused("query", () => step.Attend(0, null!, keys, values));
            Refused("query", () => step.Attend(0, query.narrow(1, 0, 3), keys, values));
            Refused("keys", () => step.Attend(0, query.narrow(2, 0, 2), keys.narrow(2, 0, 2), values.narrow(2, 0, 2)));
            Refused("keys", () => step.Attend(0, query, keys.to(ScalarType.BFloat16), values));
            Refused("values", () => step.Attend(0, query, keys, values.narrow(0, 0, 1)));
            Refused("scale", () => step.Attend(0, query, keys, values, double.NaN));
        });
        Attend(step, Layers, (query, keys, values));
        step.Commit();
        Assert.That(sequences.Select(cache.LengthOf), Is.EqualTo(new[] { 3, 1 }));
    }

    [Test]
    public void Each_layer_attends_once_before_the_commit()
    {
        using ModelKeyValueCache cache = New(0);
        int sequence = cache.AddSequence(), other = cache.AddSequence();
        (Tensor Query, Tensor Keys, Tensor Values) x = Random(4);
        CacheStep step = cache.BeginStep([other, sequence], 4);
        step.Attend(1, x.Query, x.Keys, x.Values);
        Assert.That(() => step.Attend(1, x.Query, x.Keys, x.Values), Throws.InvalidOperationException.With.Message.Contains("already"));
        Assert.That(step.Commit, Throws.InvalidOperationException.With.Message.Contains("layer 0 has not"));
        step.Attend(2, x.Query, x.Keys, x.Values);
        step.Attend(0, x.Query, x.Keys, x.Values);
        step.Commit();
        Assert.That(step.Commit, Throws.InvalidOperationException.With.Message.Contains("ended"));
        Assert.That(() => step.Attend(0, x.Query, x.Keys, x.Values), Throws.InvalidOperationException.With.Message.Contains("ended"));
        step.Dispose();
        Assert.That(cache.LengthOf(sequence), Is.EqualTo(4));
    }

    [Test]
    public void Nothing_else_happens_during_a_step()
    {
        using ModelKeyValueCache cache = New(0);
        int sequence = cache.AddSequence();
        CacheStep step = cache.BeginStep([sequence], 4);
        Assert.Multiple(() =>
        {
            Busy(() => cache.AddSequence());
            Busy(() => cache.RemoveSequence(sequence));
            Busy(() => cache.Fork(sequence));
            Busy(() => cache.Truncate(sequence, 0));
            Busy(() => cache.BeginStep([sequence], 4));
        });
        step.Dispose();
        step.Dispose();
        cache.RemoveSequence(sequence);

        static void Busy(Action call) => Assert.That(() => call(), Throws.InvalidOperationException.With.Message.Contains("step is under way"));
    }

    [Test]
    public void A_step_of_a_disposed_cache_says_so()
    {
        ModelKeyValueCache cache = New(0);
        int sequence = cache.AddSequence(), other = cache.AddSequence();
        (Tensor Query, Tensor Keys, Tensor Values) x = Random(4);
        CacheStep step = cache.BeginStep([sequence, other], 4);
        cache.Dispose();
        cache.Dispose();
        Assert.That(() => step.Attend(0, x.Query, x.Keys, x.Values), Throws.TypeOf<ObjectDisposedException>());
        Assert.That(step.Commit, Throws.TypeOf<ObjectDisposedException>());
        step.Dispose();
        Assert.That(() => cache.AddSequence(), Throws.TypeOf<ObjectDisposedException>());
        Assert.That(() => cache.Memory, Throws.TypeOf<ObjectDisposedException>());
        Assert.That(() => cache.Usage, Throws.TypeOf<ObjectDisposedException>());
    }

    /// <summary>What a long prompt leaves does not depend on the sizes of its parts.</summary>
    [Test]
    public void A_prompt_in_chunks_is_stored_as_at_once([Values(7, 32, 100)] int chunk, [Values(0, 4)] int sinks)
    {
        const int Tokens = 300;
        using ModelKeyValueCache chunked = New(sinks), atOnce = New(sinks);
        int[] sequences = [chunked.AddSequence(), chunked.AddSequence()];
        Assert.That(new[] { atOnce.AddSequence(), atOnce.AddSequence() }, Is.EqualTo(sequences));
        (Tensor query, Tensor keys, Tensor values) = Random(Tokens);
        Step(atOnce, sequences, (query, keys, values));
        for (int first = 0; first < Tokens; first += chunk)
        {
            int count = Math.Min(chunk, Tokens - first);
            Step(chunked, sequences, (query.narrow(2, first, count), keys.narrow(2, first, count), values.narrow(2, first, count)));
        }

        Same(chunked, atOnce, sequences, 1);
    }

    [Test]
    public void Steps_leave_no_tensors()
    {
        using ModelKeyValueCache cache = New(4);
        int[] sequences = [cache.AddSequence(), cache.AddSequence()];
        long before = 0;
        for (int i = 0; i < 40; i++)
        {
            using (DisposeScope scope = NewDisposeScope())
            {
                Step(cache, sequences, Random(i % 3 == 0 ? 1 : 40));
                using CacheStep givenUp = cache.BeginStep(sequences, 100);
                Attend(givenUp, 2, Random(100));
            }

            before = i == 4 ? Tensor.TotalCount : before;
        }

        // A slab for so many pages each, and the tables of their addresses.
        Assert.That(Tensor.TotalCount, Is.LessThanOrEqualTo(before + 20));
    }

    private static void Refused(string parameter, Action call) =>
        Assert.That(() => call(), Throws.InstanceOf<ArgumentException>().With.Property(nameof(ArgumentException.ParamName)).EqualTo(parameter));

    private static Tensor[] Attend(CacheStep step, int layers, (Tensor Query, Tensor Keys, Tensor Values) x) =>
        [.. Enumerable.Range(0, layers).Select(layer => step.Attend(layer, x.Query, x.Keys, x.Values))];

    private static Tensor[] Step(ModelKeyValueCache cache, int[] sequences, (Tensor Query, Tensor Keys, Tensor Values) x)
    {
        using CacheStep step = cache.BeginStep(sequences, (int)x.Keys.shape[2]);
        Tensor[] outputs = Attend(step, Layers, x);
        step.Commit();
        return outputs;
    }

    // The same tokens in two sequences of both.
    private int[] Filled(ModelKeyValueCache cache, ModelKeyValueCache other, int past)
    {
        int[] sequences = [cache.AddSequence(), cache.AddSequence()];
        Assert.That(new[] { other.AddSequence(), other.AddSequence() }, Is.EqualTo(sequences));
        if (past > 0)
        {
            (Tensor Query, Tensor Keys, Tensor Values) x = Random(past);
            Step(cache, sequences, x);
            Step(other, sequences, x);
        }

        return sequences;
    }

    private void Same(ModelKeyValueCache actual, ModelKeyValueCache expected, int[] sequences, int count)
    {
        Assert.That(sequences.Select(actual.LengthOf), Is.EqualTo(sequences.Select(expected.LengthOf)));
        if (actual is MustafarModelCache pruned && expected is MustafarModelCache alike)
        {
            Assert.That(sequences.Select(pruned.CompressedLengthOf), Is.EqualTo(sequences.Select(alike.CompressedLengthOf)));
        }

        foreach (int tokens in new[] { count, 1 })
        {
            (Tensor Query, Tensor Keys, Tensor Values) x = Random(tokens);
            foreach ((Tensor one, Tensor same) in Step(actual, sequences, x).Zip(Step(expected, sequences, x)))
            {
                Compare.Same(one, same, $"{tokens} tokens");
            }
        }
    }

    private ModelKeyValueCache New(int sinks) => dense
        ? new DenseModelCache(Layers, s_shape, ScalarType.Float32, new torch.Device(device))
        : new MustafarModelCache(Layers, s_shape, ScalarType.Float32, new torch.Device(device), s_options with { SinkTokens = sinks });

    private (Tensor Query, Tensor Keys, Tensor Values) Random(int tokens) =>
        (randn(2, 4, tokens, 64).to(device), randn(2, 2, tokens, 64).to(device), randn(2, 2, tokens, 64).to(device));
}
