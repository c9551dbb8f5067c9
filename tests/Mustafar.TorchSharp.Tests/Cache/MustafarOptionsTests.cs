namespace Mustafar.Tests.Cache;

[TestFixture]
internal sealed class MustafarOptionsTests
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 1, HeadDim = 64 };

    [TestCase(0.0, 128, 1, 128)]
    [TestCase(0.5, 128, 1, 64)]
    [TestCase(0.7, 128, 1, 39)]
    [TestCase(0.7, 128, 8, 40)]
    [TestCase(0.6875, 128, 1, 40)]
    [TestCase(0.8125, 128, 8, 24)]
    [TestCase(0.29, 100, 1, 71)] // 0.29 · 100 is 28.999999999999996
    [TestCase(0.999, 64, 1, 1)]
    [TestCase(0.99, 80, 16, 16)]
    [TestCase(0.1, 80, 64, 80)]
    public void Kept_channels(double sparsity, int headDim, int multiple, int expected)
    {
        MustafarOptions options = new() { KeySparsity = sparsity, ValueSparsity = sparsity, KeptMultiple = multiple };
        Assert.That(options.KeysKept(headDim), Is.EqualTo(expected));
        Assert.That(options.ValuesKept(headDim), Is.EqualTo(expected));
    }

    [TestCase(0.5, 128, 64)]
    [TestCase(0.55, 128, 64)]
    [TestCase(0.6, 128, 56)]
    [TestCase(0.625, 64, 24)]
    [TestCase(0.7, 128, 40)]
    [TestCase(0.95, 256, 80)]
    public void Kept_channels_of_balanced_patterns(double sparsity, int headDim, int expected)
    {
        MustafarOptions options = new() { KeySparsity = sparsity, ValueSparsity = sparsity, KeptMultiple = 7, BalancedKeys = true, BalancedValues = true };
        Assert.That(options.KeysKept(headDim), Is.EqualTo(expected));
        Assert.That(options.ValuesKept(headDim), Is.EqualTo(expected));
    }

    /// <summary>Sparsity 0 keeps everything, whatever would be pruned how.</summary>
    [Test]
    public void Nothing_is_pruned_without_sparsity()
    {
        MustafarOptions options = new() { KeySparsity = 0, ValueSparsity = 0, KeptMultiple = 7, BalancedKeys = true };
        Assert.That((options.KeysKept(80), options.ValuesKept(128)), Is.EqualTo((80, 128)));
    }

    [Test]
    public void Keys_have_channel_scales_by_default_below_8_bits()
    {
        Assert.That(new MustafarOptions().KeyChannelScales, Is.False);
        Assert.That(new MustafarOptions { KeyBits = 8 }.KeyChannelScales, Is.False);
        Assert.That(new MustafarOptions { KeyBits = 4 }.KeyChannelScales, Is.True);
        Assert.That(new MustafarOptions { KeyBits = 4, KeyChannelScales = false }.KeyChannelScales, Is.False);
        Assert.That((MustafarPresets.FourBits with { KeyBits = 8 }).KeyChannelScales, Is.False);
    }

    [Test]
    public void Channel_scales_of_keys_as_they_are_make_no_sense()
    {
        MustafarOptions options = new() { KeyChannelScales = true };
        Assert.That(
            () => new MustafarCache(1, s_shape, TorchSharp.torch.ScalarType.Float32, options: options),
            Throws.ArgumentException.With.Property("ParamName").EqualTo("KeyChannelScales").And.Message.Contains("KeyBits of 8 or 4"));
    }

    [TestCase(16, 0, "KeyBits of 8 or 4")]
    [TestCase(4, 0.5, "KeySparsity of 0")]
    public void A_rotation_is_for_integers_of_which_nothing_is_pruned(int bits, double sparsity, string expected)
    {
        MustafarOptions options = new() { KeyRotation = true, KeyBits = bits, KeySparsity = sparsity };
        Assert.That(
            () => new MustafarCache(1, s_shape, TorchSharp.torch.ScalarType.Float32, options: options),
            Throws.ArgumentException.With.Property("ParamName").EqualTo("KeyRotation").And.Message.Contains(expected));
    }

    [Test]
    public void A_rotation_needs_a_head_dim_that_is_a_power_of_two() => Assert.That(
        () => new MustafarCache(1, new() { NumKvHeads = 1, HeadDim = 96 }, TorchSharp.torch.ScalarType.Float32, options: MustafarPresets.FourBits with { KeyRotation = true }),
        Throws.TypeOf<NotSupportedException>().With.Message.Contains("head_dim of 64, 128 or 256, but got 96"));

    /// <summary>What the documentation of the presets says of their bytes.</summary>
    [Test]
    public void Presets_take_the_bytes_that_they_say()
    {
        (MustafarOptions Options, double Percent)[] presets =
        [
            (MustafarPresets.EightBits, 50.8), (MustafarPresets.FourBits, 25.8), (MustafarPresets.HalfInFourBits, 19.5),
            (MustafarPresets.TwoOfFourInFourBits, 19.5), (MustafarPresets.Default, 37.5),
        ];
        CacheShape shape = CacheShape.Checked(s_shape with { HeadDim = 128 }, TorchSharp.torch.ScalarType.Float16, TorchSharp.torch.CPU);
        foreach ((MustafarOptions options, double percent) in presets)
        {
            LayerFormat format = new(shape, options);
            double dense = 2.0 * format.PageBlocks * 32 * 128 * 2;
            Assert.That(100 * format.HeadBytes / dense, Is.EqualTo(percent).Within(0.06));
        }
    }

    [Test]
    public void What_no_balanced_pattern_has_is_refused()
    {
        MustafarOptions options = new() { KeySparsity = 0.4, BalancedKeys = true, BalancedValues = true };
        Assert.Multiple(() =>
        {
            Assert.That(() => options.KeysKept(128), Throws.TypeOf<NotSupportedException>().With.Message.Contains("KeySparsity of 0.4 keeps 77 of 128"));
            Assert.That(() => options.ValuesKept(80), Throws.TypeOf<NotSupportedException>().With.Message.Contains("80"));
            Assert.That(() => new MustafarCache(1, new() { NumKvHeads = 1, HeadDim = 128 }, TorchSharp.torch.ScalarType.Float32, options: options), Throws.TypeOf<NotSupportedException>());
        });
    }

    [Test]
    public void Values_out_of_range_are_named()
    {
        Assert.Multiple(() =>
        {
            Refused(() => new MustafarOptions { KeySparsity = 1 }, "KeySparsity", "1");
            Refused(() => new MustafarOptions { ValueSparsity = -0.1 }, "ValueSparsity", "-0.1");
            Refused(() => new MustafarOptions { ValueSparsity = double.NaN }, "ValueSparsity", "NaN");
            Refused(() => new MustafarOptions { KeyBits = 2 }, "KeyBits", "2");
            Refused(() => new MustafarOptions { ValueBits = 32 }, "ValueBits", "16");
            Refused(() => new MustafarOptions { LocalWindow = -1 }, "LocalWindow", "-1");
            Refused(() => new MustafarOptions { LocalWindow = (1 << 24) + 1 }, "LocalWindow", "0 to 16777216");
            Refused(() => new MustafarOptions { GroupSize = (1 << 20) + 32 }, "GroupSize", "32 to 1048576");
            Refused(() => new MustafarOptions { GroupSize = 48 }, "GroupSize", "multiple of 32");
            Refused(() => new MustafarOptions { GroupSize = 0 }, "GroupSize", "0");
            Refused(() => new MustafarOptions { KeptMultiple = 0 }, "KeptMultiple", "0");
            Refused(() => new MustafarOptions { SlidingWindow = 0 }, "SlidingWindow", "0");
            Refused(() => new MustafarOptions { SinkTokens = -1 }, "SinkTokens", "-1");
            Assert.That(() => new MustafarOptions().KeysKept(0), Throws.TypeOf<ArgumentOutOfRangeException>());
        });
    }

    private static void Refused(Func<MustafarOptions> make, string parameter, string says) => Assert.That(
        () => make(), Throws.TypeOf<ArgumentOutOfRangeException>().With.Property("ParamName").EqualTo(parameter).And.Message.Contains(says));
}
