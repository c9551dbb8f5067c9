using Mustafar.Models.Evaluation;
using Mustafar.Tests.Llama;

namespace Mustafar.Tests.Evaluation;

[TestFixture]
public sealed class CacheSettingReaderTests
{
    [Test]
    public void AFileAndLinesOfTextSayTheSame()
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("s.json"), """
            {
              "four": "FourBits",
              "64 / 40": { "key_sparsity": 0.5, "value_sparsity": 0.6875, "local_window": 64 },
              "aware": { "key_selection": "output-aware", "value_selection": "per-channel" },
              "half, plain scales": { "preset": "HalfInFourBits", "key_channel_scales": false, "balanced_values": true }
            }
            """);
        MustafarOptions defaults = new() { SinkTokens = 4, LocalWindow = 16, KeySparsity = 0.25 };
        CacheSetting[] expected =
        [
            new("four", MustafarPresets.FourBits with { SinkTokens = 4, LocalWindow = 16 }),
            new("64 / 40", new MustafarOptions { KeySparsity = 0.5, ValueSparsity = 0.6875, SinkTokens = 4, LocalWindow = 64 }),
            new("aware", defaults with { KeySelection = KeySelection.OutputAware, ValueSelection = ValueSelection.PerChannel }),
            new("half, plain scales", MustafarPresets.HalfInFourBits with
            {
                KeyChannelScales = false, BalancedValues = true, SinkTokens = 4, LocalWindow = 16,
            }),
        ];
        CacheSetting[] parsed =
        [
            CacheSettingReader.Parse("four: fourbits", defaults),
            CacheSettingReader.Parse("64 / 40: key_sparsity=0.5, value_sparsity=0.6875, local_window=64", defaults),
            CacheSettingReader.Parse("aware: key_selection=output-aware, value_selection=per-channel", defaults),
            CacheSettingReader.Parse("half, plain scales: HalfInFourBits, key_channel_scales=false, balanced_values=true", defaults),
        ];
        Assert.That(
            CacheSettingReader.Parse("rotated: FourBits, key_rotation=true"),
            Is.EqualTo(new CacheSetting("rotated", MustafarPresets.FourBits with { KeyRotation = true })));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(CacheSettingReader.Load(directory.File("s.json"), defaults), Is.EqualTo(expected));
            Assert.That(parsed, Is.EqualTo(expected));
            Assert.That(CacheSettingReader.Parse("EightBits"), Is.EqualTo(new CacheSetting("EightBits", MustafarPresets.EightBits)));
        }
    }

    [TestCase("""{ "a": { "key_bit": 4 } }""", "setting 'a'", "key_bits", "'key_bit'")]
    [TestCase("""{ "a": { "key_bits": 5 } }""", "setting 'a'", "'key_bits'", "5")]
    [TestCase("""{ "a": { "key_selection": "best" } }""", "setting 'a'", "'key_selection'", "output-aware", "'best'")]
    [TestCase("""{ "a": { "value_selection": 3 } }""", "setting 'a'", "value_selection", "3")]
    [TestCase("""{ "a": { "key_sparsity": "half" } }""", "setting 'a'", "'key_sparsity'", "half")]
    [TestCase("""{ "a": { "value_sparsity": 1 } }""", "setting 'a'", "'value_sparsity'", "1")]
    [TestCase("""{ "a": { "sinks": -1 } }""", "setting 'a'", "'sinks'", "-1")]
    [TestCase("""{ "a": { "key_channel_scales": true } }""", "setting 'a'", "'key_channel_scales'", "key_bits")]
    [TestCase("""{ "a": { "key_rotation": true } }""", "setting 'a'", "'key_rotation'", "key_bits")]
    [TestCase("""{ "a": { "key_rotation": true, "key_bits": 4 } }""", "setting 'a'", "'key_rotation'", "key_sparsity")]
    [TestCase("""{ "a": "ThreeBits" }""", "setting 'a'", "FourBits", "'ThreeBits'")]
    [TestCase("""{ "a": 4 }""", "setting 'a'", "object", "4")]
    [TestCase("""{ "": "FourBits" }""", "name", "empty", "setting")]
    [TestCase("{}", "at least one setting", "empty", "s.json")]
    [TestCase("""[ "FourBits" ]""", "object", "array", "s.json")]
    [TestCase("""{ "a": { "key_bits": 4 }""", "JSON", "s.json", "")]
    public void AFileThatIsNotValidNamesFileSettingAndKey(string json, params string[] words)
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("s.json"), json);
        string message = Assert.Catch<UnusableFileException>(() => CacheSettingReader.Load(directory.File("s.json")))!.Message;
        Assert.That(message, Does.StartWith(directory.File("s.json")));
        foreach (string word in words)
        {
            Assert.That(message, Does.Contain(word));
        }
    }

    [TestCase("a: key_bits=4, key_bits=8", "twice")]
    [TestCase("a: key_bits=four", "'key_bits'")]
    [TestCase("a: NoSuchPreset", "NoSuchPreset")]
    [TestCase(": FourBits", "name")]
    public void ATextThatIsNotValidIsRefused(string text, string word) =>
        Assert.That(() => CacheSettingReader.Parse(text), Throws.InstanceOf<UnusableFileException>().With.Message.Contains(word));

    [Test]
    public void NamesAreUnique()
    {
        CacheSetting four = new("four", MustafarPresets.FourBits);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(CacheSettingReader.WithDense([four]), Is.EqualTo(new[] { CacheSetting.Dense, four }));
            Assert.That(() => CacheSettingReader.WithDense([four, four]), Throws.ArgumentException.With.Message.Contains("'four'"));
            Assert.That(
                () => CacheSettingReader.WithDense([four with { Name = "dense" }]), Throws.ArgumentException.With.Message.Contains("'dense'"));
        }
    }
}
