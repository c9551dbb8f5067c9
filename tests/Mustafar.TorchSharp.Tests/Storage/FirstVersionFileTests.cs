using Mustafar.Storage;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Storage;

/// <summary>Files of the first version are read: they say nothing of bits, and blocks that keep all channels have bitmaps.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class FirstVersionFileTests(string device)
{
    private const int HeadDim = 64;

    private static readonly MustafarOptions s_pruned = new() { LocalWindow = 20, GroupSize = 32, KeySparsity = 0.5, ValueSparsity = 0.7 };

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [Test]
    public void A_cache_of_the_first_version_goes_on([Values(0, 0.5)] double keySparsity, [Values(0, 0.7)] double valueSparsity)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        MustafarOptions options = s_pruned with { KeySparsity = keySparsity, ValueSparsity = valueSparsity };
        using MustafarCache cache = New(options), restored = New(options);
        (Tensor keys, Tensor values) = (Random(200), Random(200));
        cache.Append(keys, values, [200, 90]);
        cache.Save(Path("new"), "model");
        WriteFirstVersion(options);
        restored.Load(Path("old"), "model");
        Tensor token = Random(1);
        Compare.Same(restored.Forward(token, token, token), cache.Forward(token, token, token), "restored");
        restored.Truncate(100);
        cache.Truncate(100);
        restored.Save(Path("restored"), "model");
        cache.Save(Path("new"), "model");
        Assert.That(File.ReadAllBytes(Path("restored")), Is.EqualTo(File.ReadAllBytes(Path("new"))));
    }

    [Test]
    public void It_has_no_integers()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New(s_pruned), integers = New(MustafarPresets.FourBits with { LocalWindow = 20, GroupSize = 32 });
        cache.Append(Random(100), Random(100));
        cache.Save(Path("new"), "model");
        WriteFirstVersion(s_pruned);
        Assert.That(
            () => integers.Load(Path("old"), "model"), Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("key_bits=4"));
        Assert.That(integers.Length, Is.Zero);
    }

    // Makes an old file of the new one.
    private void WriteFirstVersion(MustafarOptions options)
    {
        byte[] file = File.ReadAllBytes(Path("new"));
        using MemoryStream stream = new(file);
        SafetensorsHeader header = SafetensorsHeader.Read(stream);
        List<(string, ScalarType, long[])> tensors = [];
        List<byte> data = [];
        foreach (SafetensorsEntry entry in header.Tensors.Values.OrderBy(entry => entry.Offset))
        {
            long[] shape = [.. entry.Shape];
            Span<byte> bytes = file.AsSpan((int)entry.Offset, (int)entry.ByteCount);
            bool keepsAll = (entry.Name.EndsWith("key_pages", StringComparison.Ordinal) && options.KeySparsity == 0)
                || (entry.Name.EndsWith("value_pages", StringComparison.Ordinal) && options.ValueSparsity == 0);
            if (keepsAll)
            {
                int blockBytes = (int)shape[^1];
                byte[] bitmap = new byte[32 * HeadDim / 8];
                bitmap.AsSpan().Fill(0xFF);
                shape[^1] += bitmap.Length;
                for (; !bytes.IsEmpty; bytes = bytes[blockBytes..])
                {
                    data.AddRange([.. bitmap, .. bytes[..blockBytes]]);
                }
            }
            else
            {
                data.AddRange(bytes);
            }

            tensors.Add((entry.Name, entry.DType, shape));
        }

        Dictionary<string, string> metadata = new(header.Metadata)
        {
            ["mustafar.format_version"] = "1",
            ["mustafar.options.0"] =
                $"keys_kept={options.KeysKept(HeadDim)} values_kept={options.ValuesKept(HeadDim)} balanced=0 local_window=20 group_size=32 sliding_window=0 sink_tokens=0",
        };
        (string text, _) = SafetensorsText.Parts(SafetensorsHeader.Encode(metadata, tensors));
        File.WriteAllBytes(Path("old"), SafetensorsText.Sealed(text, [.. data]));
    }

    private MustafarCache New(MustafarOptions options) => new(2, new() { NumKvHeads = 1, HeadDim = HeadDim }, ScalarType.Float16, new Device(device), options);

    private Tensor Random(int tokens) => randn(2, 1, tokens, HeadDim).to(ScalarType.Float16).to(device);

    private string Path(string name) => _directory.File(name);
}
