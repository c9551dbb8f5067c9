using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>Caches keep the channels that their selections choose.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class SelectionTests(string device)
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
        "by-place", input => input.Tokens.to(ScalarType.Float32).abs() * (1 + ((Places(input) + arange(HeadDim)) % 7)).to(ScalarType.Float32));

    private static readonly ValueSelection s_valueScores = ValueSelection.ByScores(
        "late-channels", input => input.Tokens.to(ScalarType.Float32) * arange(1f, HeadDim + 1, dtype: ScalarType.Float32));

    private static readonly KeySelection s_keyMask = KeySelection.ByMask(
        "every-third", input => ((Places(input) + arange(HeadDim)) % 3).eq(0).expand(input.Tokens.shape));

    private static readonly ValueSelection s_valueMask = ValueSelection.ByMask(
        "first-tokens", input => (Places(input) % 32).lt(input.Kept * 32 / HeadDim).expand(input.Tokens.shape));

    private static readonly (string Name, MustafarOptions Options)[] s_cases =
    [
        ("output-aware keys", s_options with { KeySelection = KeySelection.OutputAware }),
        ("output-aware balanced keys", s_options with { KeySelection = KeySelection.OutputAware, BalancedKeys = true, BalancedValues = true }),
        ("output-aware keys in 4 bits", s_options with { KeySelection = KeySelection.OutputAware, KeyBits = 4, ValueBits = 8 }),
        ("structured", s_options with { KeySelection = KeySelection.Structured, ValueSelection = ValueSelection.Structured }),
        ("per-channel values", s_options with { ValueSelection = ValueSelection.PerChannel }),
        ("per-channel values in 8 bits", s_options with { ValueSelection = ValueSelection.PerChannel, ValueBits = 8 }),
        ("scores", s_options with { KeySelection = s_keyScores, ValueSelection = s_valueScores }),
        ("scores in balanced patterns", s_options with { KeySelection = s_keyScores, BalancedKeys = true, ValueSelection = s_valueScores, BalancedValues = true }),
        ("masks", s_options with { KeySelection = s_keyMask, ValueSelection = s_valueMask }),
        ("output-aware keys after sinks", s_options with { KeySelection = KeySelection.OutputAware, ValueSelection = s_valueScores, SinkTokens = 3 }),
    ];

    private DisposeScope _scope = null!;

    public static IEnumerable<string> Names => s_cases.Select(item => item.Name);

    [SetUp]
    public void Begin()
    {
        manual_seed(3);
        _scope = NewDisposeScope();
    }

    [TearDown]
    public void End() => _scope.Dispose();

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
        cache.Truncate([20, 90]);
        reference.Truncate([20, 90]);
        Step(cache, reference, [100, 60]);
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

        using MustafarCache plain = New(s_options with { BalancedKeys = options.BalancedKeys, BalancedValues = options.BalancedValues, KeyBits = options.KeyBits, ValueBits = options.ValueBits, SinkTokens = options.SinkTokens }, batch: 1);
        Assert.That(() => plain.Load(path, "model"), Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("_selection="));
    }

    [Test]
    public void Output_aware_keys_need_queries()
    {
        using MustafarCache cache = New(s_options with { KeySelection = KeySelection.OutputAware }, batch: 1);
        (Tensor _, Tensor k, Tensor v) = Random(1, 5);
        Assert.That(() => cache.Append(k, v), Throws.InvalidOperationException.With.Message.Contains("output-aware").And.Message.Contains("Forward"));
        Assert.That(cache.Length, Is.Zero);
    }

    [Test]
    public void Selections_that_do_not_fit_are_refused()
    {
        Assert.That(() => New(s_options with { KeySelection = KeySelection.Structured, BalancedKeys = true }, 1), Throws.ArgumentException.With.Message.Contains("KeySelection"));
        Assert.That(() => New(s_options with { ValueSelection = ValueSelection.PerChannel, BalancedValues = true }, 1), Throws.ArgumentException.With.Message.Contains("ValueSelection"));
        Assert.That(
            () => New(s_options with { ValueSelection = ValueSelection.PerChannel, ValueSparsity = 0.99, KeptMultiple = 1 }, 1),
            Throws.ArgumentException.With.Message.Contains("at least 2 of 64 channels"));
        Assert.That(() => KeySelection.Named("best"), Throws.ArgumentException.With.Message.Contains("magnitude, output-aware, structured").And.Message.Contains("'best'"));
        Assert.That(() => KeySelection.ByMask("two words", input => input.Tokens), Throws.ArgumentException.With.Message.Contains("'two words'"));
        Assert.That(() => new MustafarOptions { ValueSelection = null! }, Throws.ArgumentNullException.With.Message.Contains("ValueSelection"));
    }

    /// <summary>A function that gives anything else than it should stops the step, which leaves the cache as it was.</summary>
    [Test]
    public void A_function_that_gives_what_it_should_not_is_refused([Range(0, 4)] int fault)
    {
        KeySelection selection = fault switch
        {
            0 => KeySelection.ByScores("own", input => input.Tokens.narrow(1, 0, 1).to(ScalarType.Float32)),
            1 => KeySelection.ByScores("own", input => input.Tokens.to(ScalarType.Float64)),
            2 => KeySelection.ByMask("own", input => ones_like(input.Tokens, dtype: ScalarType.Bool)),
            3 => KeySelection.ByMask("own", _ => null!),
            _ => KeySelection.ByMask("own", _ => throw new InvalidOperationException("'own' has no opinion")),
        };
        using MustafarCache cache = New(s_options with { KeySelection = selection }, batch: 1);
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

    private static Tensor Places(SelectionInput input) => (input.First + arange(input.Tokens.shape[1])).unsqueeze(1);

    private static MustafarOptions Options(string name) => s_cases.Single(item => item.Name == name).Options;

    private MustafarCache New(MustafarOptions options, int batch) => new(batch, s_shape, ScalarType.Float32, new torch.Device(device), options);

    // Channels of different sizes, in keys and in queries others.
    private (Tensor Query, Tensor Keys, Tensor Values) Random(int batch, int tokens)
    {
        Tensor sizes = (arange(HeadDim) % 5 + 1).to(ScalarType.Float32) / 3;
        return ((randn(batch, 4, tokens, HeadDim) * sizes.flip(0)).to(device), (randn(batch, 2, tokens, HeadDim) * sizes).to(device), randn(batch, 2, tokens, HeadDim).to(device));
    }

    private void Step(MustafarCache cache, ReferenceCache reference, int[] counts)
    {
        (Tensor query, Tensor keys, Tensor values) = Random(counts.Length, counts.Max());
        Tensor expected = reference.Forward(query.cpu(), keys.cpu(), values.cpu(), Scale, counts);
        string what = $"[{string.Join(", ", counts)}] tokens";
        Compare.Close(cache.Forward(query, keys, values, counts: counts), expected, 1e-4, 1e-4, what);
        Assert.That(cache.CompressedLengths, Is.EqualTo(reference.Compressed), what);
    }
}
