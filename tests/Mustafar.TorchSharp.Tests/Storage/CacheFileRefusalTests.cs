using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Storage;

/// <summary>Files that are not those of the caches are refused, and the caches stay empty and as good as before.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class CacheFileRefusalTests(string device)
{
    private static readonly MustafarOptions Options = new() { LocalWindow = 0, GroupSize = 32, SinkTokens = 1, SlidingWindow = 60 };

    private TemporaryDirectory _directory = null!;

    private string Path => _directory.File("file");

    [SetUp]
    public void SaveACache()
    {
        _directory = new TemporaryDirectory();
        using var scope = NewDisposeScope();
        manual_seed(1);
        using MustafarCache cache = New(Options);
        Tensor tokens = Random(70);
        cache.Append(tokens, tokens, [70, 40]);
        MustafarCacheFile.Save(Path, [cache], "model", new Dictionary<string, string> { ["a"] = "b" });
    }

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [Test]
    public void Any_flipped_bit_is_found()
    {
        byte[] bytes = File.ReadAllBytes(Path);
        int header = 8 + BitConverter.ToInt32(bytes);
        using MustafarCache cache = New(Options);
        Random random = new(1);
        for (int i = 0; i < bytes.Length; i++)
        {
            // All bits of the header, and after it those of one in 64 bytes.
            if (i < header || i % 64 == 0)
            {
                for (int bit = 0; bit < 8; bit++)
                {
                    Flipped(i < header ? i : i + random.Next(64), bit);
                }
            }
        }

        Works(cache);

        void Flipped(int at, int bit)
        {
            if (at < bytes.Length)
            {
                bytes[at] ^= (byte)(1 << bit);
                File.WriteAllBytes(Path, bytes);
                Refused(cache, $"byte {at} bit {bit}");
                bytes[at] ^= (byte)(1 << bit);
            }
        }
    }

    [Test]
    public void Any_truncation_is_found()
    {
        byte[] bytes = File.ReadAllBytes(Path);
        int header = 8 + BitConverter.ToInt32(bytes);
        using MustafarCache cache = New(Options);
        for (int length = 0; length < bytes.Length; length += length < header ? 1 : 37)
        {
            File.WriteAllBytes(Path, bytes[..length]);
            Refused(cache, $"{length} bytes");
        }

        File.WriteAllBytes(Path, bytes[..^1]);
        Refused(cache, "all but the last");
        File.WriteAllBytes(Path, [.. bytes, 0]);
        Refused(cache, "one more");
        Works(cache);
    }

    private static IEnumerable<TestCaseData> OtherCaches()
    {
        yield return Other("keys_kept", Options with { KeySparsity = 0.5 });
        yield return Other("values_kept", Options with { ValueSparsity = 0.5 });
        yield return Other("balanced", Options with { KeySparsity = 0.5, ValueSparsity = 0.5, BalancedKeys = true, BalancedValues = true });
        yield return Other("key_bits", Options with { KeyBits = 8 });
        yield return Other("value_bits", Options with { ValueBits = 4 });
        yield return Other("key_channel_scales=1", Options with { KeyBits = 8, KeyChannelScales = true });
        yield return Other("key_rotation=1", Options with { KeyBits = 8, KeySparsity = 0, KeyRotation = true });
        yield return Other("local_window", Options with { LocalWindow = 1 });
        yield return Other("group_size", Options with { GroupSize = 64 });
        yield return Other("sliding_window", Options with { SlidingWindow = null });
        yield return Other("sink_tokens", Options with { SinkTokens = 0 });
        yield return Other("batch", Options, batch: 3);
        yield return Other("num_kv_heads", Options, heads: 2);
        yield return Other("head_dim", Options, headDim: 128);
        yield return Other("dtype", Options, dtype: ScalarType.BFloat16);

        static TestCaseData Other(string name, MustafarOptions options, int batch = 2, int heads = 1, int headDim = 64, ScalarType dtype = ScalarType.Float16) =>
            new TestCaseData(name, options, batch, heads, headDim, dtype).SetArgDisplayNames(name);
    }

    [TestCaseSource(nameof(OtherCaches))]
    public void A_cache_of_another_kind_is_named(string name, MustafarOptions options, int batch, int heads, int headDim, ScalarType dtype)
    {
        using MustafarCache cache = new(batch, new() { NumKvHeads = heads, HeadDim = headDim }, dtype, new Device(device), options);
        Assert.That(Refused(cache).Message, Does.StartWith(Path).And.Contain(name).And.Contain("expected"));
    }

    /// <summary>Sparsity and rounding matter by what is kept alone.</summary>
    [Test]
    public void Options_that_come_to_the_same_are_accepted()
    {
        using MustafarCache cache = New(Options with { KeySparsity = 0.65, ValueSparsity = 0.68, KeptMultiple = 24 });
        MustafarCacheFile.Load(Path, [cache], "model");
        Assert.That(cache.Lengths, Is.EqualTo(new[] { 70, 40 }));
    }

    [Test]
    public void Another_model_other_layers_and_other_files_are_named()
    {
        using MustafarCache cache = New(Options), second = New(Options);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => cache.Load(Path, "other"), Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("another model").And.Property("Path").EqualTo(Path));
            Assert.That(() => MustafarCacheFile.Load(Path, [cache, second], "model"), Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("layers"));
            Assert.That(() => cache.Load(_directory.File("none"), "model"), Throws.TypeOf<FileNotFoundException>());
        }

        SafetensorsText.Rewrite(Path, header => header.Replace("\"mustafar.format_version\":\"2\"", "\"mustafar.format_version\":\"3\""));
        Assert.That(Refused(cache).Message, Does.Contain("newer"));
        SafetensorsText.Rewrite(Path, header => header.Replace("mustafar.format_version", "format"));
        Assert.That(Refused(cache).Message, Does.Contain("expected a saved cache"));
        File.WriteAllBytes(Path, SafetensorsText.File("{}", []));
        Assert.That(Refused(cache).Message, Does.Contain("expected a saved cache"));
        File.WriteAllText(Path, "version https://git-lfs.github.com/spec/v1\n");
        Assert.That(Refused(cache).Message, Does.Contain("another format"));
        Works(cache);
    }

    [Test]
    public void A_header_without_its_checksum_is_refused()
    {
        using MustafarCache cache = New(Options);
        SafetensorsText.Rewrite(Path, header => header.Replace("mustafar.sha256", "mustafar.sha255"));
        Assert.That(Refused(cache).Message, Does.Contain("mustafar.sha256"));
    }

    [Test]
    public void Caches_that_can_not_be_restored_are_told_before_the_file_is_read()
    {
        using var scope = NewDisposeScope();
        using MustafarCache filled = New(Options), empty = New(Options);
        using MustafarCache other = new(2, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float16, new Device(device), Options);
        Tensor tokens = Random(3);
        filled.Append(tokens, tokens);
        MustafarCache disposed = New(Options);
        disposed.Dispose();
        string none = _directory.File("none");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => filled.Load(none, "model"), Throws.ArgumentException.With.Message.Contains("3 tokens"));
            Assert.That(() => disposed.Load(none, "model"), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => disposed.Save(none, "model"), Throws.TypeOf<ObjectDisposedException>());
            Assert.That(() => empty.Load("", "model"), Throws.ArgumentException);
            Assert.That(() => empty.Load(none, null!), Throws.ArgumentNullException);
            Assert.That(() => MustafarCacheFile.Load(none, [], "model"), Throws.ArgumentException.With.Message.Contains("at least one"));
            Assert.That(() => MustafarCacheFile.Load(none, [empty, null!], "model"), Throws.ArgumentException.With.Message.Contains("null"));
            Assert.That(() => MustafarCacheFile.Load(none, [empty, empty], "model"), Throws.ArgumentException.With.Message.Contains("twice"));
            Assert.That(() => MustafarCacheFile.Save(none, [empty, other], "model"), Throws.ArgumentException.With.Message.Contains("num_kv_heads 2"));
            Assert.That(() => MustafarCacheFile.Save(none, [empty, filled], "model"), Throws.ArgumentException.With.Message.Contains("equal lengths"));
            Assert.That(
                () => MustafarCacheFile.Save(none, [empty], "model", new Dictionary<string, string> { ["a"] = null! }), Throws.ArgumentException.With.Message.Contains("'a'"));
            Assert.That(File.Exists(none), Is.False);
        }

        using (filled.Claim())
        {
            Assert.That(() => filled.Save(none, "model"), Throws.InvalidOperationException.With.Message.Contains("another thread"));
            Assert.That(() => MustafarCacheFile.Load(none, [empty, filled], "model"), Throws.InvalidOperationException);
        }

        Works(empty);
        filled.Save(none, "model");
    }

    private MustafarCacheFileException Refused(MustafarCache cache, string what = "")
    {
        MustafarCacheFileException? failure = Assert.Throws<MustafarCacheFileException>(() => cache.Load(Path, "model"), what);
        Assert.That(cache.Length, Is.Zero, what);
        return failure!;
    }

    // As a cache that has seen no file.
    private void Works(MustafarCache cache)
    {
        using var scope = NewDisposeScope();
        using MustafarCache untouched = New(Options);
        Tensor tokens = Random(100);
        cache.Append(tokens, tokens);
        untouched.Append(tokens, tokens);
        Compare.Same(cache.Attend(tokens[.., .., ..1]), untouched.Attend(tokens[.., .., ..1]), "after refusals");
    }

    private MustafarCache New(MustafarOptions options) => new(2, new() { NumKvHeads = 1, HeadDim = 64 }, ScalarType.Float16, new Device(device), options);

    private Tensor Random(int tokens) => randn(2, 1, tokens, 64).to(ScalarType.Float16).to(device);
}
