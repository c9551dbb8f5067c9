using System.Runtime.InteropServices;
using System.Text.Json;
using static TorchSharp.torch;

namespace Mustafar.Tests.Storage;

/// <summary>Files whose checksum is right and whose content no cache has: nothing of them reaches native code.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class CacheFileContentTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 1, HeadDim = 64 };
    private static readonly MustafarOptions Options = new() { LocalWindow = 0, GroupSize = 32, SinkTokens = 1, SlidingWindow = 60 };

    private TemporaryDirectory _directory = null!;

    private string Path => _directory.File("file");

    // Two sequences of 200 and 40 tokens, and a third that shares the pages of the first.
    [SetUp]
    public void SaveACache()
    {
        _directory = new TemporaryDirectory();
        using var scope = NewDisposeScope();
        manual_seed(1);
        using MustafarCache parent = new(2, s_shape, ScalarType.Float16, new Device(device), Options);
        Tensor tokens = randn(2, 1, 200, 64).to(ScalarType.Float16).to(device);
        parent.Append(tokens, tokens, [200, 40]);
        using MustafarCache cache = parent.Fork([0, 1, 0]);
        cache.Save(Path, "model");
        Assert.That(Table("lengths"), Is.EqualTo(new[] { 199, 39, 199 }), "sinks not counted");
        Assert.That(Table("compressed"), Is.EqualTo(new[] { 192, 32, 192 }));
        Assert.That(Table("released_pages"), Is.EqualTo(new[] { 3, 0, 3 }));
        Assert.That(Table("page_indices"), Is.EqualTo(new[] { 0, 1, 2, 3, 0, 1, 2 }));
    }

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [TestCase("lengths", 0, -1, "0 to")]
    [TestCase("lengths", 0, int.MaxValue, "0 to")]
    [TestCase("lengths", 0, 191, "compressed tokens of sequence 0")]
    [TestCase("lengths", 0, 224, "compressed tokens of sequence 0")]
    [TestCase("lengths", 1, 0, "compressed tokens of sequence 1")]
    [TestCase("compressed", 0, 160, "compressed tokens of sequence 0")]
    [TestCase("compressed", 0, 193, "groups of 32")]
    [TestCase("compressed", 0, 224, "compressed tokens of sequence 0")]
    [TestCase("compressed", 0, -32, "compressed tokens of sequence 0")]
    [TestCase("compressed", 2, int.MinValue, "compressed tokens of sequence 2")]
    [TestCase("released_pages", 0, -1, "released pages")]
    [TestCase("released_pages", 0, 5, "released pages")]
    [TestCase("released_pages", 0, 2, "8 page indices")]
    [TestCase("released_pages", 1, 1, "released pages")]
    [TestCase("sink_counts", 0, 0, "sinks")]
    [TestCase("sink_counts", 0, 2, "sinks")]
    [TestCase("sink_counts", 1, -1, "sinks")]
    [TestCase("page_indices", 0, 1, "expected a page of 0 to 0")]
    [TestCase("page_indices", 0, -1, "expected a page")]
    [TestCase("page_indices", 3, 4, "expected a page")]
    [TestCase("page_indices", 3, 0, "at place 3 only")]
    [TestCase("page_indices", 5, 2, "at place 5 only")]
    [TestCase("page_indices", 6, int.MaxValue, "expected a page")]
    public void Tables_that_contradict_each_other_or_the_rule_are_refused(string table, int index, int value, string problem)
    {
        Change(table, bytes => MemoryMarshal.Cast<byte, int>(bytes)[index] = value);
        Refused(problem);
    }

    [TestCase("key_pages", "layers.0.key_pages")]
    [TestCase("value_pages", "layers.0.value_pages")]
    public void Blocks_that_keep_other_channels_are_refused(string table, string problem)
    {
        // In the last page: those before it are in place then.
        Change(table, bytes => bytes[^(bytes.Length / 4)] ^= 1);
        Refused(problem);

        // The pages that were taken for it go to the next ones.
        using MustafarCache cache = New();
        Assert.That(() => cache.Load(Path, "model"), Throws.TypeOf<MustafarCacheFileException>());
        (long bytes, long tensors) = (cache.Memory.CompressedBytes, Tensor.TotalCount);
        Assert.That(() => cache.Load(Path, "model"), Throws.TypeOf<MustafarCacheFileException>());
        Assert.That((cache.Memory.CompressedBytes, Tensor.TotalCount), Is.EqualTo((bytes, tensors)));
    }

    /// <summary>Integers and scales that quantisation does not make: a negative zero, an infinite scale of a token, scales of channels.</summary>
    [TestCase("key_pages", 40, 0x88, "in integers with scales")]
    [TestCase("value_pages", -1, 0xFC, "in integers with scales")]
    [TestCase("key_channel_scales", 3, 0x7F, "numbers from 2^-10 to 2^10")]
    [TestCase("key_channel_scales", 4, 0x01, "numbers from 2^-10 to 2^10")]
    public void Integers_and_scales_that_no_cache_has_are_refused(string table, int place, byte value, string problem)
    {
        using var scope = NewDisposeScope();
        MustafarOptions options = MustafarPresets.FourBits with { LocalWindow = 0, GroupSize = 32 };
        using MustafarCache saved = new(1, s_shape, ScalarType.Float16, new Device(device), options), restored = new(1, s_shape, ScalarType.Float16, new Device(device), options);
        Tensor tokens = randn(1, 1, 40, 64).to(ScalarType.Float16).to(device);
        saved.Append(tokens, tokens);
        saved.Save(Path, "model");
        Change(table, bytes => bytes[place < 0 ? bytes.Length + place : place] = value);
        Assert.That(
            () => restored.Load(Path, "model"), Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains(table).And.Message.Contains(problem));
        Assert.That(restored.Length, Is.Zero);
        restored.Append(tokens, tokens);
        Oracle.Compare.Same(restored.Attend(tokens[.., .., ..1]), saved.Attend(tokens[.., .., ..1]), "after the refusal");
    }

    [Test]
    public void Pages_that_no_sequence_has_are_refused()
    {
        Change("page_indices", bytes => new int[] { 0, 1, 2, 2, 0, 1, 2 }.AsSpan().CopyTo(MemoryMarshal.Cast<byte, int>(bytes)));
        Refused("place");
    }

    [Test]
    public void Layers_of_different_lengths_are_refused()
    {
        using var scope = NewDisposeScope();
        using MustafarCache one = New(), two = New();
        Tensor tokens = randn(3, 1, 20, 64).to(ScalarType.Float16).to(device);
        one.Append(tokens, tokens);
        two.Append(tokens, tokens);
        MustafarCacheFile.Save(Path, [one, two], "model");
        Change("lengths", bytes => bytes[0]--, layer: 1);
        using MustafarCache first = New(), second = New();
        Assert.That(
            () => MustafarCacheFile.Load(Path, [first, second], "model"),
            Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("layer 1 has [19, 20, 20]"));
        Assert.That((first.Length, second.Length), Is.EqualTo((0, 0)));
    }

    /// <summary>What fills slots without a token does not come into the cache.</summary>
    [Test]
    public void Slots_without_a_token_are_cleared()
    {
        using MustafarCache cache = New(), expected = New();
        byte[] before = File.ReadAllBytes(Path);
        expected.Load(Path, "model");
        Change("window_keys", bytes => bytes[..(5 * 128)].Fill(0xFF)); // tokens 192 to 198 are in slots 0 to 6 of 32
        Assert.That(() => cache.Load(Path, "model"), Throws.Nothing);
        cache.Clear();
        File.WriteAllBytes(Path, before);
        Change("window_keys", bytes => bytes[(20 * 128)..(30 * 128)].Fill(0xFF));
        cache.Load(Path, "model");
        cache.Save(Path, "model");
        Assert.That(File.ReadAllBytes(Path), Is.EqualTo(before));
    }

    [TestCase("\"shape\":[4,1,1,", "\"shape\":[1,4,1,", "key_pages")]
    [TestCase("\"layers.0.lengths\":{\"dtype\":\"I32\",\"shape\":[3]", "\"layers.0.lengths\":{\"dtype\":\"F32\",\"shape\":[3]", "lengths")]
    [TestCase("\"layers.0.page_indices\":{\"dtype\":\"I32\",\"shape\":[7]", "\"layers.0.page_indices\":{\"dtype\":\"I32\",\"shape\":[7,1]", "page_indices")]
    [TestCase("layers.0.sink_keys", "layers.0.sink_kews", "sink_keys")]
    [TestCase("\"layers.0.lengths\":{\"dtype\":\"I32\",\"shape\":[3],\"data_offsets\":[0,12]", "\"layers.0.lengths\":{\"dtype\":\"I32\",\"shape\":[3],\"data_offsets\":[4,16]", "lengths")]
    [TestCase("\"data_offsets\":[0,12]", "\"data_offsets\":[0,9223372036854775807]", "lengths")]
    [TestCase("\"shape\":[3]", "\"shape\":[4611686018427387904,4]", "lengths")]
    [TestCase("\"mustafar.batch\":\"3\"", "\"mustafar.batch\":3", "mustafar.batch")]
    [TestCase("\"mustafar.batch\":\"3\"", "\"mustafar.batch\":\"\\ud800\"", "header")]
    [TestCase("{\"__metadata__\":", "{\"x\":{\"dtype\":\"I32\",\"shape\":[0],\"data_offsets\":[0,0]},\"__metadata__\":", "tensors")]
    [TestCase("{\"__metadata__\":", "{\"__metadata__\":{},\"__metadata__\":", "__metadata__")]
    public void Headers_of_other_tensors_are_refused(string text, string other, string problem)
    {
        string before = SafetensorsText.Parts(File.ReadAllBytes(Path)).Header;
        SafetensorsText.Rewrite(Path, header => header.Replace(text, other));
        Assert.That(SafetensorsText.Parts(File.ReadAllBytes(Path)).Header, Is.Not.EqualTo(before));
        Refused(problem);
    }

    /// <summary>Whatever a header or tables say, the answer is a cache that works or this one exception.</summary>
    [Test]
    public void Any_flipped_bit_with_a_right_checksum_is_refused_or_harmless()
    {
        using var scope = NewDisposeScope();
        byte[] before = File.ReadAllBytes(Path);
        (string header, byte[] data) = SafetensorsText.Parts(before);
        int tables = Range(header, "page_indices", 0).End;
        Tensor token = randn(3, 1, 1, 64).to(ScalarType.Float16).to(device);
        (int refused, int loaded) = (0, 0);
        for (int i = 0; i < header.Length + tables; i++)
        {
            int bit = 1 << (i % (i < header.Length ? 7 : 8));
            File.WriteAllBytes(Path, before);
            SafetensorsText.Rewrite(
                Path,
                text => i < text.Length ? $"{text[..i]}{(char)(text[i] ^ bit)}{text[(i + 1)..]}" : text,
                bytes =>
                {
                    if (i >= header.Length)
                    {
                        bytes[i - header.Length] ^= (byte)bit;
                    }

                    return bytes;
                });
            using MustafarCache cache = New();
            try
            {
                cache.Load(Path, "model");
                loaded++;
            }
            catch (MustafarCacheFileException)
            {
                Assert.That(cache.Length, Is.Zero);
                refused++;
            }

            cache.Append(token, token);
            cache.Attend(token).Dispose();
        }

        // The 64 digits of the checksum are made right again, and some lengths are as good as others.
        Assert.That(loaded, Is.InRange(64, 72), $"{refused} refused");
    }

    [Test]
    public void A_header_that_states_a_huge_length_is_refused()
    {
        byte[] bytes = File.ReadAllBytes(Path);
        foreach (long length in new[] { long.MaxValue, -1, 100_000_001, bytes.Length })
        {
            BitConverter.GetBytes(length).CopyTo(bytes, 0);
            File.WriteAllBytes(Path, bytes);
            Refused("header");
        }
    }

    private void Refused(string problem)
    {
        using MustafarCache cache = New();
        Assert.That(
            () => cache.Load(Path, "model"), Throws.TypeOf<MustafarCacheFileException>().With.Message.StartsWith(Path).And.Message.Contains(problem));
        Assert.That(cache.Length, Is.Zero);
        using var scope = NewDisposeScope();
        Tensor tokens = randn(3, 1, 100, 64).to(ScalarType.Float16).to(device);
        using MustafarCache untouched = New();
        cache.Append(tokens, tokens);
        untouched.Append(tokens, tokens);
        Oracle.Compare.Same(cache.Attend(tokens[.., .., ..1]), untouched.Attend(tokens[.., .., ..1]), "after the refusal");
    }

    private MustafarCache New() => new(3, s_shape, ScalarType.Float16, new Device(device), Options);

    private int[] Table(string name)
    {
        (string header, byte[] data) = SafetensorsText.Parts(File.ReadAllBytes(Path));
        (int start, int end) = Range(header, name, 0);
        return MemoryMarshal.Cast<byte, int>(data.AsSpan(start, end - start)).ToArray();
    }

    private void Change(string table, Change change, int layer = 0)
    {
        (int start, int end) = Range(SafetensorsText.Parts(File.ReadAllBytes(Path)).Header, table, layer);
        SafetensorsText.Rewrite(Path, header => header, data =>
        {
            change(data.AsSpan(start, end - start));
            return data;
        });
    }

    private static (int Start, int End) Range(string header, string table, int layer)
    {
        using JsonDocument document = JsonDocument.Parse(header);
        JsonElement range = document.RootElement.GetProperty($"layers.{layer}.{table}").GetProperty("data_offsets");
        return (range[0].GetInt32(), range[1].GetInt32());
    }
}

/// <summary>Changes bytes in their place.</summary>
internal delegate void Change(Span<byte> bytes);
