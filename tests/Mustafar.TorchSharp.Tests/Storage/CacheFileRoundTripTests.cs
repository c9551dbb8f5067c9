using Mustafar.Storage;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Storage;

/// <summary>A restored cache is the one that was saved, to the last bit of whatever it does next.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class CacheFileRoundTripTests(string device)
{
    private const int Heads = 2;

    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    private static readonly MustafarOptions Small = new() { LocalWindow = 20, GroupSize = 32, KeySparsity = 0.5, ValueSparsity = 0.7 };

    private TemporaryDirectory _directory = null!;

    private static IEnumerable<TestCaseData> Setups()
    {
        yield return Setup("plain", Small, 64);
        yield return Setup("rows that are no multiple of 64 channels", Small with { KeptMultiple = 1, KeySparsity = 0.31 }, 80);
        yield return Setup("large groups, no window", Small with { GroupSize = 96, LocalWindow = 0 }, 128);
        yield return Setup("a window of several groups", Small with { LocalWindow = 130 }, 256);
        yield return Setup("2:4", Small with { BalancedKeys = true, BalancedValues = true, KeySparsity = 0.5, ValueSparsity = 0.5 }, 128);
        yield return Setup("5 and 6 of 16", Small with { BalancedKeys = true, BalancedValues = true, KeySparsity = 0.6875, ValueSparsity = 0.625 }, 64);
        yield return Setup("a sliding window", Small with { SlidingWindow = 50 }, 64);
        yield return Setup("sinks", Small with { SinkTokens = 5 }, 64);
        yield return Setup("balanced, sliding, with sinks", Small with { BalancedKeys = true, BalancedValues = true, KeySparsity = 0.5, SlidingWindow = 33, SinkTokens = 4 }, 128);

        yield return Setup("all kept", Small with { KeySparsity = 0, ValueSparsity = 0 }, 80);
        yield return Setup("all kept, 8 bits", MustafarPresets.EightBits with { GroupSize = 64, LocalWindow = 5 }, 96);
        yield return Setup("all kept, 4 bits", MustafarPresets.FourBits with { GroupSize = 32 }, 64);
        yield return Setup("rotated keys of 4 bits", MustafarPresets.FourBits with { GroupSize = 32, KeyRotation = true }, 128);
        yield return Setup("half kept, 4 bits, with sinks", MustafarPresets.HalfInFourBits with { GroupSize = 32, SinkTokens = 3 }, 128);
        yield return Setup("keys all kept in 8 bits, values 2:4 in 4 bits", MustafarPresets.TwoOfFourInFourBits with { KeySparsity = 0, KeyBits = 8, GroupSize = 32 }, 64);
        MustafarOptions integers = Small with { KeyBits = 8, KeyChannelScales = true, ValueBits = 4 };
        yield return Setup("unstructured in 8 and 4 bits", integers, 128);
        yield return Setup("5 and 7 of 16 in 8 and 4 bits", integers with { BalancedKeys = true, KeySparsity = 0.6875, BalancedValues = true, ValueSparsity = 0.5625 }, 64);
        yield return Setup("4 bits, sliding", MustafarPresets.FourBits with { GroupSize = 32, SlidingWindow = 50, KeyChannelScales = false, ValueBits = 16 }, 64);

        static TestCaseData Setup(string name, MustafarOptions options, int headDim) => new TestCaseData(options, headDim).SetArgDisplayNames(name);
    }

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [TestCaseSource(nameof(Setups))]
    public void A_restored_cache_goes_on_as_the_saved_one(MustafarOptions options, int headDim) => ForEach(options, dtype =>
    {
        using MustafarCache cache = New(3, options, headDim, dtype), restored = New(3, options, headDim, dtype);
        Fill(cache, [250, 0, 97]);
        cache.Truncate([240, 0, 90]);
        SaveAndLoad(cache, restored);
        GoesOnAlike(restored, cache, dtype);
    });

    /// <summary>The way by which pages of a GPU are converted, with the CPU's own order on both sides.</summary>
    [TestCaseSource(nameof(Setups))]
    public void Converted_pages_have_the_same_bits(MustafarOptions options, int headDim) => ForEach(options, dtype =>
    {
        using MustafarCache cache = New(2, options, headDim, dtype), restored = New(2, options, headDim, dtype);
        Fill(cache, [130, 300], special: true);
        cache.Save(File("own"), "model");
        cache.ConvertsPages = restored.ConvertsPages = true;
        cache.Save(File("converted"), "model");
        restored.Load(File("own"), "model");
        restored.ConvertsPages = false;
        restored.Save(File("again"), "model");
        Assert.That(Bytes("converted"), Is.EqualTo(Bytes("own")));
        Assert.That(Bytes("again"), Is.EqualTo(Bytes("own")));
    });

    /// <summary>
    /// A file does not tell the device: on a GPU, whose pages have another order, this goes to the CPU and back. The CPU writes
    /// the same file of the same tokens.
    /// </summary>
    [TestCaseSource(nameof(Setups))]
    public void A_file_moves_between_devices(MustafarOptions options, int headDim) => ForEach(options, dtype =>
    {
        using MustafarCache cache = New(2, options, headDim, dtype), back = New(2, options, headDim, dtype);
        using MustafarCache onCpu = NewOnCpu(), filledThere = NewOnCpu();
        Fill(cache, [130, 300], special: true);
        cache.Save(File("there"), "model");
        onCpu.Load(File("there"), "model");
        onCpu.Save(File("cpu"), "model");
        Assert.That(Bytes("cpu"), Is.EqualTo(Bytes("there")));
        back.Load(File("cpu"), "model");
        GoesOnAlike(back, cache, dtype);
        manual_seed(1);
        Fill(filledThere, [130, 300], special: true);
        filledThere.Save(File("filled there"), "model");
        Assert.That(Bytes("filled there"), Is.EqualTo(Bytes("there")));

        MustafarCache NewOnCpu() => new(2, new() { NumKvHeads = Heads, HeadDim = headDim }, dtype, CPU, options);
    });

    [Test]
    public void Forks_share_pages_in_the_file_and_afterwards([Values(null, 60)] int? window)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        MustafarOptions options = Small with { SlidingWindow = window };
        using MustafarCache parent = New(2, options, 64, ScalarType.Float16);
        Fill(parent, [400, 180]);
        using MustafarCache cache = parent.Fork([0, 1, 0, 0]);
        Tensor more = Random(4, 70, 64, ScalarType.Float16);
        cache.Append(more, more, [0, 10, 40, 70]);
        using MustafarCache restored = New(4, options, 64, ScalarType.Float16);
        SaveAndLoad(cache, restored);
        nint[][] pages = [.. Enumerable.Range(0, 4).Select(cache.PageAddresses)];
        nint[][] restoredPages = [.. Enumerable.Range(0, 4).Select(restored.PageAddresses)];
        int distinct = pages.SelectMany(all => all).Distinct().Count();
        Assert.That(distinct, Is.LessThan(pages.Sum(all => all.Length)));
        Assert.That(restoredPages.SelectMany(all => all).Distinct().Count(), Is.EqualTo(distinct));
        Assert.That(restoredPages[2].Zip(pages[2]).Count(pair => restoredPages[0].Contains(pair.First) != pages[0].Contains(pair.Second)), Is.Zero);
        using (FileStream file = System.IO.File.OpenRead(File("first")))
        {
            Assert.That(SafetensorsHeader.Read(file).Tensors["layers.0.key_pages"].Shape[0], Is.EqualTo(distinct));
        }

        GoesOnAlike(restored, cache, ScalarType.Float16);
        long bytes = restored.Memory.CompressedBytes;
        restored.Clear();
        Tensor prompt = Random(4, 100, 64, ScalarType.Float16);
        restored.Append(prompt, prompt);
        Assert.That(restored.Memory.CompressedBytes, Is.EqualTo(bytes), "shared pages came back");
    }

    [TestCase(0)]
    [TestCase(3)]
    [TestCase(19)]
    public void So_is_a_cache_of_few_tokens_or_none(int tokens)
    {
        using var scope = NewDisposeScope();
        MustafarOptions options = Small with { SinkTokens = 4 };
        using MustafarCache cache = New(2, options, 64, ScalarType.Float32), restored = New(2, options, 64, ScalarType.Float32);
        if (tokens > 0)
        {
            Fill(cache, [tokens, tokens / 2]);
        }

        SaveAndLoad(cache, restored);
        GoesOnAlike(restored, cache, ScalarType.Float32);
    }

    /// <summary>Groups may be compressed a token early where a sequence had none of the new tokens; truncating leaves others late.</summary>
    [Test]
    public void So_is_a_cache_whose_groups_are_not_where_the_rule_alone_puts_them()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        MustafarOptions options = Small with { SlidingWindow = 40 };
        using MustafarCache cache = New(2, options, 64, ScalarType.Float32), restored = New(2, options, 64, ScalarType.Float32);
        Tensor first = Random(2, 115, 64, ScalarType.Float32), next = Random(2, 30, 64, ScalarType.Float32);
        cache.Append(first, first);
        cache.Forward(next, next, next, counts: [30, 0]);
        Assert.That(cache.CompressedLengths[1], Is.EqualTo(96), "a token early");
        cache.Truncate([112, 115]);
        SaveAndLoad(cache, restored);
        GoesOnAlike(restored, cache, ScalarType.Float32);
    }

    [Test]
    public void Layers_and_metadata_come_back_and_the_file_is_safetensors()
    {
        using var scope = NewDisposeScope();
        MustafarOptions[] options = [Small, Small with { SlidingWindow = 40 }, Small with { SinkTokens = 3 }];
        MustafarCache[] layers = [.. options.Select(option => New(1, option, 64, ScalarType.BFloat16))];
        MustafarCache[] restored = [.. options.Select(option => New(1, option, 64, ScalarType.BFloat16))];
        foreach (MustafarCache layer in layers)
        {
            Fill(layer, [150]);
        }

        Dictionary<string, string> metadata = new() { ["text"] = "\"quoted\" → ünï \n \0 👍", ["mustafar.sha256"] = "\"mustafar.sha256\":\"no", [""] = "" };
        MustafarCacheFile.Save(File("file"), layers, "model", metadata);
        Assert.That(MustafarCacheFile.Load(File("file"), restored, "model"), Is.EqualTo(metadata));
        for (int i = 0; i < layers.Length; i++)
        {
            GoesOnAlike(restored[i], layers[i], ScalarType.BFloat16);
            layers[i].Dispose();
            restored[i].Dispose();
        }

        using FileStream file = System.IO.File.OpenRead(File("file"));
        SafetensorsHeader header = SafetensorsHeader.Read(file);
        Assert.That(header.Tensors["layers.1.window_keys"].DType, Is.EqualTo(ScalarType.BFloat16));
        Assert.That(header.Tensors["layers.1.window_keys"].Shape, Is.EqualTo(new long[] { 1, Heads, 64, 64 }));
        Assert.That(header.Tensors["layers.2.sink_values"].Shape, Is.EqualTo(new long[] { 1, Heads, 3, 64 }));
        Assert.That(header.Tensors["layers.0.key_pages"].Shape, Is.EqualTo(new long[] { 4, Heads, 1, 256 + (64 * 32) }));
        byte[] length = new byte[4];
        file.Position = header.Tensors["layers.0.lengths"].Offset;
        file.ReadExactly(length);
        Assert.That(BitConverter.ToInt32(length), Is.EqualTo(150));
    }

    /// <summary>What was said before the cache was cleared is nobody's business.</summary>
    [Test]
    public void Slots_without_a_token_are_zero_in_the_file()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New(1, Small with { SinkTokens = 2 }, 64, ScalarType.Float32), untouched = New(1, Small with { SinkTokens = 2 }, 64, ScalarType.Float32);
        Fill(cache, [200]);
        cache.Clear();
        cache.Save(File("cleared"), "model");
        untouched.Save(File("untouched"), "model");
        Assert.That(Bytes("cleared"), Is.EqualTo(Bytes("untouched")));
    }

    private static void ForEach(MustafarOptions options, Action<ScalarType> body)
    {
        foreach (ScalarType dtype in DTypes)
        {
            using var scope = NewDisposeScope();
            manual_seed(1);
            body(dtype);
        }
    }

    // Saving what was restored gives the same file: pages, window and tables are the same to the bit.
    private void SaveAndLoad(MustafarCache cache, MustafarCache restored)
    {
        cache.Save(File("first"), "model");
        restored.Load(File("first"), "model");
        restored.Save(File("second"), "model");
        Assert.That(Bytes("second"), Is.EqualTo(Bytes("first")));
        Assert.That(restored.Lengths, Is.EqualTo(cache.Lengths));
        Assert.That(restored.CompressedLengths, Is.EqualTo(cache.CompressedLengths));
    }

    private void GoesOnAlike(MustafarCache actual, MustafarCache expected, ScalarType dtype)
    {
        foreach (int tokens in new[] { 1, 5, 40, 100 })
        {
            (Tensor query, Tensor keys) = (Random(actual.BatchSize, tokens, actual.HeadDim, dtype, 2 * Heads), Random(actual.BatchSize, tokens, actual.HeadDim, dtype));
            int[] counts = [.. Enumerable.Range(0, actual.BatchSize).Select(b => Math.Max(1, tokens - (3 * b)))];
            using MustafarCache fork = actual.Fork([0]), expectedFork = expected.Fork([0]);
            Compare.Same(actual.Forward(query, keys, keys, counts: counts), expected.Forward(query, keys, keys, counts: counts), $"{dtype}, {tokens} tokens");
            Compare.Same(fork.Forward(query[..1], keys[..1], keys[..1]), expectedFork.Forward(query[..1], keys[..1], keys[..1]), $"{dtype}, {tokens} tokens of a fork");
        }

        int[] fewer = [.. actual.Lengths.Select(length => Math.Max(0, length - 30))];
        actual.Truncate(fewer);
        expected.Truncate(fewer);
        Tensor last = Random(actual.BatchSize, 1, actual.HeadDim, dtype);
        actual.Append(last, last);
        expected.Append(last, last);
        Compare.Same(actual.Attend(last), expected.Attend(last), $"{dtype}, after truncating");
    }

    // The same tokens on every device.
    private static void Fill(MustafarCache cache, int[] lengths, bool special = false)
    {
        Tensor keys = Random(), values = Random();
        if (special)
        {
            // Rows of zeros, of few numbers, with -0, and such that are none.
            Tensor few = rand(keys.shape);
            keys = where(few < 0.4, zeros_like(keys), where(few < 0.8, -zeros_like(keys), keys));
            values = where(few < 0.05, full_like(values, double.NaN), where(few < 0.1, full_like(values, double.NegativeInfinity), values.round()));
            // Sinks are kept in f32, and what a NaN of 16 bits becomes there is up to the device.
            values.narrow(2, 0, cache.Options.SinkTokens).nan_to_num_();
            keys[0, 0, 5] = 0;
        }

        cache.Append(keys.to(cache.Device), values.to(cache.Device), lengths);

        Tensor Random() => randn(cache.BatchSize, Heads, lengths.Max(), cache.HeadDim).to(cache.DType);
    }

    private MustafarCache New(int batch, MustafarOptions options, int headDim, ScalarType dtype) => new(batch, new() { NumKvHeads = Heads, HeadDim = headDim }, dtype, new Device(device), options);

    private Tensor Random(int batch, int tokens, int headDim, ScalarType dtype, int heads = Heads) => randn(batch, heads, tokens, headDim).to(dtype).to(device);

    private string File(string name) => _directory.File(name);

    private byte[] Bytes(string name) => System.IO.File.ReadAllBytes(File(name));
}
