using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Caches keep the channels that their selections choose.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class SelectionTests(string device) : TensorFixture
{
    private const int HeadDim = 64;
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = HeadDim };
    private static readonly double Scale = 1 / Math.Sqrt(HeadDim);

    private static readonly MustafarOptions s_options = new()
    {
        LocalWindow = 16, GroupSize = 64, KeySparsity = 0.5, ValueSparsity = 0.625,
    };

    // A function of a token's place as well, so that a wrong first token shows.
    private static readonly KeySelection s_keyScores = KeySelection.ByScores(
        "by-place", input => input.Tokens.to(ScalarType.Float32).abs() * (1 + ((Places(input) + Channels(input)) % 7)).to(ScalarType.Float32));

    private static readonly ValueSelection s_valueScores = ValueSelection.ByScores(
        "late-channels", input => input.Tokens.to(ScalarType.Float32) * (1 + Channels(input)).to(ScalarType.Float32));

    private static readonly KeySelection s_keyMask = KeySelection.ByMask(
        "every-third", input => ((Places(input) + Channels(input)) % 3).eq(0).expand(input.Tokens.shape));

    private static readonly ValueSelection s_valueMask = ValueSelection.ByMask(
        "first-tokens", input => (Places(input) % 32).lt(input.Kept * 32 / input.Tokens.shape[2]).expand(input.Tokens.shape));

    // The mean of each group's tokens, in other channels for each place: what is rewritten twice, or with another group, shows.
    private static readonly KeySelection s_rewrittenKeys = KeySelection.Rewritten(
        "means", input => input.Tokens.reshape(2, -1, 64, HeadDim).mean([2], keepdim: true).expand(-1, -1, 64, -1).reshape(input.Tokens.shape) * (1 + (0.1 * (Places(input) % 5))));

    private static readonly ValueSelection s_rewrittenValues = ValueSelection.Rewritten("rounded", input => (input.Tokens * 4).round() / 4);

    private static readonly (string Name, MustafarOptions Options)[] s_cases =
    [
        ("output-aware keys", s_options with { KeySelection = KeySelection.OutputAware }),
        ("output-aware balanced keys", s_options with { KeySelection = KeySelection.OutputAware, BalancedKeys = true, BalancedValues = true }),
        ("output-aware keys in 4 bits", s_options with { KeySelection = KeySelection.OutputAware, KeyBits = 4, ValueBits = 8 }),
        ("structured", s_options with { KeySelection = KeySelection.Structured, ValueSelection = ValueSelection.Structured }),
        ("per-channel values", s_options with { ValueSelection = ValueSelection.PerChannel }),
        ("per-channel values in 8 bits", s_options with { ValueSelection = ValueSelection.PerChannel, ValueBits = 8 }),
        ("output-aware values", s_options with { ValueSelection = ValueSelection.OutputAware }),
        ("output-aware values in 8 bits, of 4-bit keys after sinks", s_options with { ValueSelection = ValueSelection.OutputAware, ValueBits = 8, KeyBits = 4, SinkTokens = 3 }),
        ("output-aware values in a sliding window after sinks", s_options with { ValueSelection = ValueSelection.OutputAware, SlidingWindow = 40, SinkTokens = 3 }),
        ("scores", s_options with { KeySelection = s_keyScores, ValueSelection = s_valueScores }),
        ("scores in balanced patterns", s_options with { KeySelection = s_keyScores, BalancedKeys = true, ValueSelection = s_valueScores, BalancedValues = true }),
        ("masks", s_options with { KeySelection = s_keyMask, ValueSelection = s_valueMask }),
        ("rewritten", s_options with { KeySparsity = 0, ValueSparsity = 0, KeySelection = s_rewrittenKeys, ValueSelection = s_rewrittenValues }),
        ("rewritten keys after sinks, pruned values", s_options with { KeySparsity = 0, KeySelection = s_rewrittenKeys, SinkTokens = 3 }),
        ("output-aware keys after sinks", s_options with { KeySelection = KeySelection.OutputAware, ValueSelection = s_valueScores, SinkTokens = 3 }),
    ];

    public static IEnumerable<string> Names => s_cases.Select(item => item.Name);

    [SetUp]
    public void Seed() => manual_seed(3);

    /// <summary>Prompts, single tokens and blocks, of sequences of different lengths; a fork goes on as its parent would.</summary>
    [Test]
    public void Steps_attend_to_what_the_selection_keeps([ValueSource(nameof(Names))] string name)
    {
        MustafarOptions options = Options(name);
        using MustafarCache cache = New(options, batch: 2);
        ReferenceCache reference = new(2, options, HeadDim);
        int[][] steps = [[30, 150], [20, 1], [1, 1], [9, 40], [40, 0], [1, 1], [70, 70], [1, 1]];
        foreach (int[] counts in steps)
        {
            Step(cache, reference, counts);
        }

        int[] parents = [1, 0, 1];
        using MustafarCache fork = cache.Fork(parents);
        ReferenceCache forked = reference.Fork(parents);
        Step(fork, forked, [70, 65, 1]);
        Step(fork, forked, [1, 1, 1]);

        // What fell out of a sliding window does not come back.
        int[] lengths = options.SlidingWindow is null ? [20, 90] : [160, 250];
        cache.Truncate(lengths);
        reference.Truncate(lengths);
        Step(cache, reference, [100, 60]);
    }

    /// <summary>On CUDA they have orders of their own, in whose kernels the chosen channels are written and read.</summary>
    [Test]
    public void So_do_steps_of_types_of_16_bits(
        [Values("output-aware keys", "structured", "per-channel values", "scores", "scores in balanced patterns", "masks")] string name,
        [Values(64, 128)] int headDim,
        [Values(16, 8, 4)] int bits)
    {
        MustafarOptions options = Options(name) with { KeyBits = bits, ValueBits = bits };
        ScalarType dtype = headDim == 64 ? ScalarType.BFloat16 : ScalarType.Float16;
        using MustafarCache cache = new(2, s_shape with { HeadDim = headDim }, dtype, new torch.Device(device), options);
        ReferenceCache reference = new(2, options, headDim);
        foreach (int[] counts in (int[][])[[30, 150], [20, 1], [1, 1], [70, 70], [1, 1]])
        {
            Step(cache, reference, counts);
        }
    }

    /// <summary>A step that is not committed leaves nothing behind in what a selection gathers.</summary>
    [Test]
    public void A_step_that_is_undone_has_no_part_in_the_choice([ValueSource(nameof(Names))] string name)
    {
        MustafarOptions options = Options(name);
        using MustafarModelCache cache = new(1, s_shape, ScalarType.Float32, new torch.Device(device), options);
        using MustafarModelCache other = new(1, s_shape, ScalarType.Float32, new torch.Device(device), options);
        int sequence = cache.AddSequence();
        Assert.That(other.AddSequence(), Is.EqualTo(sequence));
        foreach (int tokens in (int[])[20, 11, 100, 1])
        {
            (Tensor q, Tensor k, Tensor v) = Random(1, tokens);
            (Tensor lostQ, Tensor lostK, Tensor lostV) = Random(1, 17);
            using (CacheStep lost = cache.BeginStep([sequence], 17))
            {
                lost.Attend(0, 3 * lostQ, 2 * lostK, lostV);
            }

            Compare.Same(Take(cache), Take(other), $"{tokens} tokens");

            Tensor Take(MustafarModelCache target)
            {
                using CacheStep step = target.BeginStep([sequence], tokens);
                Tensor output = step.Attend(0, q, k, v);
                step.Commit();
                return output;
            }
        }
    }

    /// <summary>What was saved before and after the first compression goes on in the same way.</summary>
    [Test]
    public void A_restored_cache_goes_on([ValueSource(nameof(Names))] string name, [Values(50, 200)] int tokens, [Values] bool convert)
    {
        MustafarOptions options = Options(name);
        using TemporaryDirectory directory = new();
        string path = Path.Combine(directory.Path, "cache");
        using MustafarCache saved = New(options, batch: 1), restored = New(options, batch: 1);
        saved.ConvertsPages = restored.ConvertsPages = convert;
        (Tensor q, Tensor k, Tensor v) = Random(1, tokens);
        saved.Forward(q, k, v);
        saved.Save(path, "model");
        restored.Load(path, "model");
        foreach (int count in (int[])[1, 70, 1])
        {
            (q, k, v) = Random(1, count);
            Compare.Same(restored.Forward(q, k, v), saved.Forward(q, k, v), $"{count} tokens");
        }

        using MustafarCache plain = New(s_options with { KeySparsity = options.KeySparsity, ValueSparsity = options.ValueSparsity, BalancedKeys = options.BalancedKeys, BalancedValues = options.BalancedValues, KeyBits = options.KeyBits, ValueBits = options.ValueBits, SinkTokens = options.SinkTokens, SlidingWindow = options.SlidingWindow }, batch: 1);
        Assert.That(() => plain.Load(path, "model"), Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("_selection="));
    }

    [Test]
    public void Output_aware_channels_need_queries([Values] bool ofKeys)
    {
        MustafarOptions options = ofKeys ? s_options with { KeySelection = KeySelection.OutputAware } : s_options with { ValueSelection = ValueSelection.OutputAware };
        using MustafarCache cache = New(options, batch: 1);
        (Tensor _, Tensor k, Tensor v) = Random(1, 5);
        Assert.That(
            () => cache.Append(k, v),
            Throws.InvalidOperationException.With.Message.Contains($"{(ofKeys ? "Key" : "Value")}Selection 'output-aware'").And.Message.Contains("Forward"));
        Assert.That(cache.Length, Is.Zero);
    }

    /// <summary>Output-aware values keep 32 queries of each sequence, of one number of heads, and report their bytes.</summary>
    [Test]
    public void Queries_are_counted_and_of_as_many_heads_as_before()
    {
        MustafarOptions options = s_options with { ValueSelection = ValueSelection.OutputAware };
        using MustafarModelCache cache = new(1, new() { NumKvHeads = 2, HeadDim = HeadDim }, ScalarType.Float32, new torch.Device(device), options);
        using MustafarModelCache plain = new(1, new() { NumKvHeads = 2, HeadDim = HeadDim }, ScalarType.Float32, new torch.Device(device), options with { ValueSelection = ValueSelection.PerChannel });
        int sequence = cache.AddSequence();
        Assert.That(plain.AddSequence(), Is.EqualTo(sequence));
        Step(150);
        Assert.That((Extra(cache.Memory.UsedBytes, plain.Memory.UsedBytes), Extra(cache.Usage.ReservedBytes, plain.Usage.ReservedBytes)), Is.EqualTo((32, 32)));
        int fork = cache.Fork(sequence);
        Assert.That(plain.Fork(sequence), Is.EqualTo(fork));
        Assert.That(Extra(cache.Memory.TotalBytes, plain.Memory.TotalBytes), Is.EqualTo(64));
        cache.RemoveSequence(fork);
        plain.RemoveSequence(fork);
        cache.Truncate(sequence, 140);
        plain.Truncate(sequence, 140);
        Assert.That(Extra(cache.Usage.UsedBytes, plain.Usage.UsedBytes), Is.EqualTo(22));
        (Tensor q, Tensor k, Tensor v) = Random(1, 1);
        using (CacheStep step = cache.BeginStep([sequence], 1))
        {
            Assert.That(() => step.Attend(0, q.narrow(1, 0, 2), k, v), Throws.ArgumentException.With.Message.Contains("4 heads").And.Message.Contains("got 2"));
        }

        Assert.That(cache.LengthOf(sequence), Is.EqualTo(140));

        static long Extra(long bytes, long plainBytes) => (bytes - plainBytes) / (4 * HeadDim * sizeof(float));

        void Step(int tokens)
        {
            (Tensor q, Tensor k, Tensor v) = Random(1, tokens);
            foreach (MustafarModelCache target in (MustafarModelCache[])[cache, plain])
            {
                using CacheStep step = target.BeginStep([sequence], tokens);
                step.Attend(0, q, k, v);
                step.Commit();
            }
        }
    }

    /// <summary>What a file says of queries is that of its sequences, or it is refused.</summary>
    [TestCase(4, 32, 40, null)]
    [TestCase(0, 0, 40, null)]
    [TestCase(3, 0, 40, "a multiple of 2 heads, but got 3")]
    [TestCase(4, 33, 40, "0 to 32 queries of sequence 0, but got 33")]
    [TestCase(4, 5, 4, "0 to 4 queries of sequence 0, but got 5")]
    [TestCase(4, -1, 4, "0 to 4 queries of sequence 0, but got -1")]
    [TestCase(0, 1, 4, "0 to 0 queries of sequence 0, but got 1")]
    public void Queries_in_a_file_fit_its_sequences(int heads, int count, int length, string? expected)
    {
        using RecentQueries queries = RecentQueries.For(ValueSelection.OutputAware, 8, HeadDim)!;
        string? problem = queries.FindProblem(heads, [count], [length], 2);
        Assert.That(problem, expected is null ? Is.Null : Does.Contain(expected));
    }

    [Test]
    public void Selections_that_do_not_fit_are_refused()
    {
        Assert.That(() => New(s_options with { KeySelection = KeySelection.Structured, BalancedKeys = true }, 1), Throws.ArgumentException.With.Message.Contains("KeySelection"));
        Assert.That(() => New(s_options with { ValueSelection = ValueSelection.PerChannel, BalancedValues = true }, 1), Throws.ArgumentException.With.Message.Contains("ValueSelection"));
        Assert.That(
            () => New(s_options with { ValueSelection = ValueSelection.PerChannel, ValueSparsity = 0.99, KeptMultiple = 1 }, 1),
            Throws.ArgumentException.With.Message.Contains("at least 2 of 64 channels"));
        Assert.That(
            () => New(s_options with { KeySelection = s_rewrittenKeys }, 1),
            Throws.ArgumentException.With.Message.Contains("KeySparsity 0 and KeyBits 16").And.Message.Contains("0.5 and 16").And.Property("ParamName").EqualTo("KeySelection"));
        Assert.That(
            () => New(s_options with { ValueSparsity = 0, ValueBits = 8, ValueSelection = s_rewrittenValues }, 1),
            Throws.ArgumentException.With.Message.Contains("ValueSparsity 0 and ValueBits 16").And.Message.Contains("0 and 8").And.Property("ParamName").EqualTo("ValueSelection"));
        Assert.That(() => KeySelection.Named("best"), Throws.ArgumentException.With.Message.Contains("magnitude, output-aware, structured").And.Message.Contains("'best'"));
        Assert.That(() => KeySelection.ByMask("two words", input => input.Tokens), Throws.ArgumentException.With.Message.Contains("'two words'"));
        Assert.That(() => new MustafarOptions { ValueSelection = null! }, Throws.ArgumentNullException.With.Message.Contains("ValueSelection"));
    }

    /// <summary>A function that gives anything else than it should stops the step, which leaves the cache as it was.</summary>
    [Test]
    public void A_function_that_gives_what_it_should_not_is_refused([Range(0, 6)] int fault)
    {
        KeySelection selection = fault switch
        {
            0 => KeySelection.ByScores("own", input => input.Tokens.narrow(1, 0, 1).to(ScalarType.Float32)),
            1 => KeySelection.ByScores("own", input => input.Tokens.to(ScalarType.Float64)),
            2 => KeySelection.ByMask("own", input => ones_like(input.Tokens, dtype: ScalarType.Bool)),
            3 => KeySelection.ByMask("own", _ => null!),
            4 => KeySelection.Rewritten("own", input => input.Tokens.narrow(1, 0, 1)),
            5 => KeySelection.Rewritten("own", input => input.Tokens.to(ScalarType.Float64)),
            _ => KeySelection.ByMask("own", _ => throw new InvalidOperationException("'own' has no opinion")),
        };
        using MustafarCache cache = New(s_options with { KeySelection = selection, KeySparsity = selection.Rewrites ? 0 : 0.5 }, batch: 1);
        (Tensor q, Tensor k, Tensor v) = Random(1, 79);
        cache.Forward(q, k, v);
        (q, k, v) = Random(1, 1);
        Assert.That(() => cache.Forward(q, k, v), Throws.Exception.With.Message.Contains("'own'"));
        Assert.That((cache.Length, cache.CompressedLengths[0]), Is.EqualTo((79, 0)));
    }

    /// <summary>Nothing is chosen where nothing is pruned.</summary>
    [Test]
    public void A_cache_that_keeps_everything_is_as_without_a_selection()
    {
        MustafarOptions all = s_options with { KeySparsity = 0, ValueSparsity = 0 };
        using MustafarCache plain = New(all, 1);
        using MustafarCache chosen = New(all with { KeySelection = KeySelection.OutputAware, ValueSelection = ValueSelection.PerChannel }, 1);
        foreach (int tokens in (int[])[150, 1, 30])
        {
            (Tensor q, Tensor k, Tensor v) = Random(1, tokens);
            Compare.Same(chosen.Forward(q, k, v), plain.Forward(q, k, v), $"{tokens} tokens");
        }

        Assert.That(chosen.Memory, Is.EqualTo(plain.Memory));
    }

    private static Tensor Places(SelectionInput input) => (input.First + arange(input.Tokens.shape[1], device: input.Tokens.device)).unsqueeze(1);

    private static Tensor Channels(SelectionInput input) => arange(input.Tokens.shape[2], device: input.Tokens.device);

    private static MustafarOptions Options(string name) => s_cases.Single(item => item.Name == name).Options;

    private MustafarCache New(MustafarOptions options, int batch) => new(batch, s_shape, ScalarType.Float32, new torch.Device(device), options);

    // Channels of different sizes, in keys and in queries others.
    private (Tensor Query, Tensor Keys, Tensor Values) Random(int batch, int tokens, int headDim = HeadDim)
    {
        Tensor sizes = (arange(headDim) % 5 + 1).to(ScalarType.Float32) / 3;
        return ((Normal(4) * sizes.flip(0)).to(device), (Normal(2) * sizes).to(device), Normal(2).to(device));

        Tensor Normal(int heads) => randn(batch, heads, tokens, headDim);
    }

    private void Step(MustafarCache cache, ReferenceCache reference, int[] counts)
    {
        (Tensor query, Tensor keys, Tensor values) = Random(counts.Length, counts.Max(), cache.HeadDim);
        (query, keys, values) = (query.to(cache.DType), keys.to(cache.DType), values.to(cache.DType));
        Tensor expected = reference.Forward(query.cpu(), keys.cpu(), values.cpu(), Scale, counts);
        string what = $"[{string.Join(", ", counts)}] tokens";
        double tolerance = cache.DType == ScalarType.Float32 ? 1e-4 : Compare.AttentionTolerance(cache.DType);
        Compare.Close(cache.Forward(query, keys, values, Scale, counts), expected, tolerance, tolerance, what);
        Assert.That(cache.CompressedLengths, Is.EqualTo(reference.Compressed), what);
    }
}
