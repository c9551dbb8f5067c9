using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Storage;

/// <summary>Files of a whole model's cache: the same as those of a cache for each layer, and read by both.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class ModelCacheFileTests(string device) : TensorFixture
{
    private const int Heads = 2;
    private const int HeadDim = 64;
    private const int Batch = 3;
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = Heads, HeadDim = HeadDim };

    private static readonly MustafarOptions s_options = new() { LocalWindow = 20, GroupSize = 32, KeySparsity = 0.5, ValueSparsity = 0.65 };

    private static readonly MustafarOptions[][] s_layers =
    [
        [s_options, s_options with { KeySparsity = 0.65 }],
        [s_options with { SlidingWindow = 40 }, s_options, s_options with { SlidingWindow = 100 }],
        [s_options with { SlidingWindow = 40, SinkTokens = 5 }, s_options with { SlidingWindow = 70, SinkTokens = 5, BalancedKeys = true, BalancedValues = true }],
        [s_options with { KeyBits = 4, ValueBits = 8 }, MustafarPresets.FourBits with { LocalWindow = 20, GroupSize = 32, ValueBits = 16 }],
    ];

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void Begin()
    {
        manual_seed(1);
        _directory = new TemporaryDirectory();
    }

    [TearDown]
    public void End()
    {
        _directory.Dispose();
    }

    /// <summary>By way of a file of the model's cache, or of caches of layers into which that was restored.</summary>
    [Test]
    public void Restored_sequences_go_on_as_the_saved_ones([Range(0, 3)] int setup, [Values] bool byLayers)
    {
        MustafarOptions[] layers = s_layers[setup];
        using MustafarModelCache saved = New(layers), restored = New(layers);
        int[] sequences = Filled(saved);
        Dictionary<string, string> metadata = new() { ["title"] = "first" };
        MustafarCacheFile.Save(File("model"), saved, sequences, "weights", metadata);
        string file = File("model");
        if (byLayers)
        {
            MustafarCache[] caches = [.. layers.Select(layer =>
                new MustafarCache(Batch, s_shape, ScalarType.Float32, new torch.Device(device), layer))];
            Assert.That(MustafarCacheFile.Load(file, caches, "weights"), Is.EqualTo(metadata));
            Assert.That(caches.Select(cache => cache.Lengths), Is.All.EqualTo(sequences.Select(saved.LengthOf)));
            file = File("layers");
            MustafarCacheFile.Save(file, caches, "weights", metadata);
            Array.ForEach(caches, cache => cache.Dispose());
        }

        int other = restored.AddSequence();
        int[] into = [.. Enumerable.Range(0, Batch).Select(_ => restored.AddSequence())];
        Assert.That(MustafarCacheFile.Load(file, restored, into, "weights"), Is.EqualTo(metadata));
        Assert.That(into.Select(restored.LengthOf), Is.EqualTo(sequences.Select(saved.LengthOf)));
        Assert.That(into.Select(restored.PositionOf), Is.EqualTo(sequences.Select(saved.PositionOf)));
        Assert.That(into.Select(restored.CompressedLengthOf), Is.EqualTo(sequences.Select(saved.CompressedLengthOf)));
        Assert.That(restored.LengthOf(other), Is.Zero);
        foreach (int tokens in new[] { 1, 5, 40, 1 })
        {
            Tensor x = randn(Batch, Heads, tokens, HeadDim).to(device);
            foreach ((Tensor actual, Tensor expected) in Step(restored, into, x).Zip(Step(saved, sequences, x)))
            {
                Compare.Same(actual, expected, $"{tokens} tokens");
            }
        }
    }

    /// <summary>Pages that sequences share are in a file once, and shared again when it is read.</summary>
    [Test]
    public void Shared_pages_stay_shared()
    {
        MustafarOptions[] layers = s_layers[0];
        using MustafarModelCache saved = New(layers), restored = New(layers);
        int[] sequences = Filled(saved);
        saved.RemoveSequence(sequences[1]);
        saved.RemoveSequence(sequences[2]);
        sequences = [sequences[0], saved.Fork(sequences[0]), saved.Fork(sequences[0])];
        MustafarCacheFile.Save(File("forks"), saved, sequences, "weights");
        int[] into = [restored.AddSequence(), restored.AddSequence(), restored.AddSequence()];
        MustafarCacheFile.Load(File("forks"), restored, into, "weights");
        Assert.That(restored.Usage.UsedBytes, Is.EqualTo(saved.Usage.UsedBytes));
        Array.ForEach(into, restored.RemoveSequence);
        Assert.That(restored.Usage.UsedBytes, Is.Zero);
    }

    [Test]
    public void What_does_not_fit_is_refused_and_changes_nothing()
    {
        MustafarOptions[] layers = s_layers[1];
        using MustafarModelCache saved = New(layers);
        int[] sequences = Filled(saved);
        MustafarCacheFile.Save(File("model"), saved, sequences, "weights");
        using MustafarModelCache small = New(layers, new CacheLimits { MaxSequences = 4, BudgetTokens = 64 });
        int[] into = [.. Enumerable.Range(0, Batch).Select(_ => small.AddSequence())];
        CacheUsage empty = small.Usage;
        Assert.Multiple(() =>
        {
            Assert.That(() => MustafarCacheFile.Load(File("model"), small, into, "weights"), Throws.TypeOf<CacheBudgetException>());
            Assert.That(() => MustafarCacheFile.Load(File("model"), small, into, "other"), Throws.TypeOf<MustafarCacheFileException>());
            Assert.That(() => MustafarCacheFile.Load(File("model"), small, into[..2], "weights"), Throws.TypeOf<MustafarCacheFileException>());
            Assert.That(() => MustafarCacheFile.Load(File("model"), small, [7], "weights"), Throws.TypeOf<SequenceNotFoundException>());
            Assert.That(() => MustafarCacheFile.Load(File("model"), saved, sequences, "weights"), Throws.ArgumentException.With.Message.Contains("empty"));
            Assert.That(() => MustafarCacheFile.Save(File("none"), saved, [], "weights"), Throws.ArgumentException);
            Assert.That(() => MustafarCacheFile.Save(File("twice"), saved, [sequences[0], sequences[0]], "weights"), Throws.ArgumentException);
        });
        Assert.That(small.Usage, Is.EqualTo(empty));
        using MustafarModelCache shorter = New(layers, new CacheLimits { MaxLength = 220 });
        into = [.. Enumerable.Range(0, Batch).Select(_ => shorter.AddSequence())];
        Assert.That(
            () => MustafarCacheFile.Load(File("model"), shorter, into, "weights"),
            Throws.TypeOf<CacheLimitException>().With.Message.Contains("has 221"));
        using CacheStep step = saved.BeginStep(sequences, 1);
        Assert.That(() => MustafarCacheFile.Save(File("step"), saved, sequences, "weights"), Throws.InvalidOperationException);
    }

    // Sequences of different lengths, one of them empty.
    private int[] Filled(MustafarModelCache cache)
    {
        int[] sequences = [cache.AddSequence(), cache.AddSequence(), cache.AddSequence()];
        foreach ((int tokens, int[] counts) in new[] { (150, new[] { 150, 0, 90 }), (1, [1, 0, 1]), (70, [70, 0, 7]) })
        {
            Step(cache, sequences, randn(Batch, Heads, tokens, HeadDim).to(device), counts);
        }

        return sequences;
    }

    private static Tensor[] Step(MustafarModelCache cache, int[] sequences, Tensor x, int[]? counts = null)
    {
        using CacheStep step = cache.BeginStep(sequences, (int)x.shape[2], counts ?? []);
        Tensor[] outputs = [.. Enumerable.Range(0, cache.NumLayers).Select(layer => step.Attend(layer, x, x, x))];
        step.Commit();
        return outputs;
    }

    private MustafarModelCache New(MustafarOptions[] layers, CacheLimits? limits = null) =>
        new(layers, s_shape, ScalarType.Float32, new torch.Device(device), limits);

    private string File(string name) => _directory.File(name);
}
