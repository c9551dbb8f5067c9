using Mustafar.Models.Evaluation;

namespace Mustafar.Tests.Evaluation;

[TestFixture]
public sealed class CacheSettingReaderTests
{
    [Test]
    public void TheSettingsOfTheAccuracyPageDifferFromEachOther()
    {
        IReadOnlyList<CacheSetting> settings = CacheSettingReader.Load(RepositoryFiles.At("docs/accuracy-settings.json"));
        Assert.That(settings, Has.Count.EqualTo(154));
        Assert.That(settings.Select(setting => setting.Options), Is.Unique);
    }

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
            Assert.That(CacheSettingReader.Parse("2:4: TwoOfFourInFourBits"), Is.EqualTo(new CacheSetting("2:4", MustafarPresets.TwoOfFourInFourBits)));
            Assert.That(CacheSettingReader.Parse("8:EightBits"), Is.EqualTo(new CacheSetting("8", MustafarPresets.EightBits)));
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
    [TestCase("""{ "a": { "sliding_window": 0 } }""", "setting 'a'", "'sliding_window'", "0")]
    [TestCase("""{ "a": { "layers": "FourBits" } }""", "setting 'a'", "array", "FourBits")]
    [TestCase("""{ "a": { "layers": [] } }""", "setting 'a'", "array", "[]")]
    [TestCase("""{ "a": { "layers": ["FourBits", 8] } }""", "setting 'a', layer 1", "object", "8")]
    [TestCase("""{ "a": { "layers": ["FourBits", "NoBits"] } }""", "setting 'a', layer 1", "FourBits", "'NoBits'")]
    [TestCase("""{ "a": { "layers": [{ "local_window": 8 }] } }""", "setting 'a', layer 0", "key_bits", "'local_window'")]
    [TestCase("""{ "a": { "layers": [{ "value_bits": 7 }] } }""", "setting 'a', layer 0", "'value_bits'", "7")]
    [TestCase("""{ "a": { "eviction": "lru", "capacity": 64 } }""", "setting 'a'", "snapkv", "'lru'")]
    [TestCase("""{ "a": { "eviction": "h2o" } }""", "setting 'a'", "'capacity'", "absent")]
    [TestCase("""{ "a": { "capacity": 64 } }""", "setting 'a'", "'eviction'", "'capacity'")]
    [TestCase("""{ "a": { "eviction": "h2o", "capacity": 64, "kernel_size": 5 } }""", "setting 'a'", "'kernel_size'", "h2o")]
    [TestCase("""{ "a": { "eviction": "snapkv", "capacity": 32 } }""", "setting 'a'", "'eviction'", "32")]
    [TestCase("""{ "a": { "eviction": "h2o", "capacity": 64, "sliding_window": 9 } }""", "setting 'a'", "'eviction'", "9 tokens")]
    [TestCase("""{ "a": { "layers": [{ "eviction": "h2o" }] } }""", "setting 'a', layer 0", "key_bits", "'eviction'")]
    [TestCase("""{ "a": { "key_simulation": "fp9" } }""", "setting 'a'", "'key_simulation'", "fp8-e4m3", "'fp9'")]
    [TestCase("""{ "a": { "value_simulation": "kivi-int4", "value_bits": 4 } }""", "setting 'a'", "'value_simulation'", "'value_bits'")]
    [TestCase("""{ "a": { "key_simulation": "kivi-int4", "layers": [{ "key_bits": 8 }] } }""", "setting 'a', layer 0", "'key_simulation'", "'key_bits'")]
    [TestCase("""{ "a": { "value_simulation": "kivi-int4", "layers": [{}, { "value_sparsity": 0.5 }] } }""", "setting 'a', layer 1", "'value_simulation'", "'value_sparsity'")]
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

    [Test]
    public void LayersSayWhatTheirSettingLeavesOut()
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("s.json"), """
            { "a": { "local_window": 64, "value_bits": 8, "layers": [ "FourBits", {}, { "key_bits": 4, "value_sparsity": 0.5 } ] } }
            """);
        CacheSetting setting = CacheSettingReader.Load(directory.File("s.json"), new MustafarOptions { SinkTokens = 4 }).Single();
        MustafarOptions common = new() { LocalWindow = 64, SinkTokens = 4, ValueBits = 8 };
        using (Assert.EnterMultipleScope())
        {
            Assert.That(setting.Options, Is.EqualTo(common));
            Assert.That(setting.Layers, Is.EqualTo(new[]
            {
                MustafarPresets.FourBits with { LocalWindow = 64, SinkTokens = 4 }, common, common with { KeyBits = 4, ValueSparsity = 0.5 },
            }));
        }
    }

    [Test]
    public void EvictionIsReadWithItsNumbers()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Read("eviction=streaming-llm, capacity=64"), Is.EqualTo(TokenEviction.StreamingLlm(64)));
            Assert.That(Read("eviction=streaming-llm, capacity=64, recent_tokens=44"), Is.EqualTo(TokenEviction.StreamingLlm(64, 20)));
            Assert.That(Read("FourBits, eviction=snapkv, capacity=128"), Is.EqualTo(TokenEviction.SnapKv(128)));
            Assert.That(Read("eviction=snapkv, capacity=128, recent_tokens=16, kernel_size=5"), Is.EqualTo(TokenEviction.SnapKv(128, 16, 5)));
            Assert.That(Read("eviction=h2o, capacity=64"), Is.EqualTo(TokenEviction.HeavyHitters(64)));
        }

        static TokenEviction? Read(string text) => CacheSettingReader.Parse($"a: {text}").Options!.Eviction;
    }

    [Test]
    public void SimulatedFormatsStandInPlaceOfAllElse()
    {
        MustafarOptions both = CacheSettingReader.Parse("a: FourBits, key_simulation=signs-40-int4, value_simulation=kivi-int2").Options!;
        CacheSetting values = CacheSettingReader.Parse("a: key_bits=4, value_simulation=int3-g64");
        MustafarOptions defaults = new();
        using (Assert.EnterMultipleScope())
        {
            Assert.That((both.KeySelection.Name, both.ValueSelection.Name), Is.EqualTo(("signs-40-int4", "kivi-int2")));
            Assert.That(
                both, Is.EqualTo(defaults with { KeySparsity = 0, ValueSparsity = 0, KeyChannelScales = false, KeySelection = both.KeySelection, ValueSelection = both.ValueSelection }));
            Assert.That(
                values.Options, Is.EqualTo(defaults with { KeyBits = 4, ValueSparsity = 0, ValueSelection = values.Options!.ValueSelection }));
            Assert.That(values.IsSimulated, Is.True);
            Assert.That(new CacheSetting("a", defaults).IsSimulated, Is.False);
            Assert.That((values with { Layers = [defaults] }).IsSimulated, Is.False);
        }
    }

    [Test]
    public void WhatIsWrittenIsReadAgain()
    {
        using TemporaryDirectory directory = new();
        Random random = new(7);
        CacheSetting[] settings = [.. Enumerable.Range(0, 20).Select(i => Random(random, $"setting {i}"))];
        CacheSettingWriter.Save(directory.File("s.json"), settings);
        IReadOnlyList<CacheSetting> read = CacheSettingReader.Load(directory.File("s.json"), new MustafarOptions { LocalWindow = 7, KeySparsity = 0.1 });
        using (Assert.EnterMultipleScope())
        {
            Assert.That(read.Select(setting => setting.ToJson().ToJsonString()), Is.EqualTo(settings.Select(setting => setting.ToJson().ToJsonString())));
            Assert.That(read.Select(setting => setting.Layers?.Count), Is.EqualTo(settings.Select(setting => setting.Layers?.Count)));
            Assert.That(
                () => CacheSettingWriter.Save(directory.File("t.json"), [CacheSetting.Dense]), Throws.ArgumentException.With.Message.Contains("'dense'"));
            Assert.That(
                () => CacheSettingWriter.Save(directory.File("t.json"), [settings[0], settings[0]]), Throws.ArgumentException.With.Message.Contains("two"));
            Assert.That(() => CacheSettingWriter.Save(directory.File("t.json"), []), Throws.ArgumentException);
            Assert.That(directory.File("t.json"), Does.Not.Exist);
        }
    }

    private static CacheSetting Random(Random random, string name)
    {
        MustafarOptions common = Format(new MustafarOptions
        {
            LocalWindow = random.Next(100), SinkTokens = random.Next(5), GroupSize = 32 * random.Next(1, 4), SlidingWindow = random.Next(2) == 0 ? null : random.Next(1, 999),
        });
        TokenEviction[] evictions = [TokenEviction.StreamingLlm(100, 7), TokenEviction.SnapKv(99, 20, 3), TokenEviction.HeavyHitters(64, 10)];
        common = common with { Eviction = common.SlidingWindow is null && !common.KeySelection.Rewrites ? evictions[random.Next(3)] : null };
        return new CacheSetting(name, common)
        {
            Layers = random.Next(2) == 0 ? null : [.. Enumerable.Range(0, random.Next(1, 5)).Select(_ => Format(common))],
        };

        MustafarOptions Format(MustafarOptions options)
        {
            int bits = (int)(16 >> random.Next(3));
            if (random.Next(4) == 0 && options.Eviction is null)
            {
                return options with
                {
                    KeySparsity = 0, KeyBits = 16, KeyChannelScales = false, BalancedKeys = false, KeySelection = SimulatedFormat.Named("kivi-int3").Keys,
                    ValueBits = 16 >> random.Next(3),
                };
            }

            return options with
            {
                KeySelection = KeySelection.Magnitude,
                KeySparsity = random.NextDouble(), ValueSparsity = random.Next(16) / 16.0, BalancedKeys = random.Next(2) == 0, BalancedValues = random.Next(2) == 0,
                KeyBits = bits, ValueBits = 16 >> random.Next(3), KeyChannelScales = bits < 16 && random.Next(2) == 0,
            };
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
