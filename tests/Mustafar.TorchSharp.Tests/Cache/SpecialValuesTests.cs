using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>NaN and infinity: shown where they belong to what is asked, and nowhere else.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class SpecialValuesTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 1, HeadDim = 64 };
    private static readonly MustafarOptions Options = new() { LocalWindow = 20, GroupSize = 32, KeySparsity = 0.5, ValueSparsity = 0.5 };

    /// <summary>Memory that once held NaNs, in pages and in the window, is used again for shorter and other sequences.</summary>
    [TestCase(1)]
    [TestCase(5)]
    [TestCase(40)]
    public void What_was_truncated_never_shows_again(int step)
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New();
        Tensor poison = full(new long[] { 2, 2, 300, 64 }, float.NaN, device: device);
        cache.Append(poison, poison);
        cache.Clear();
        ReferenceCache reference = new(2, Options, 64);
        manual_seed(1);
        for (int i = 0; i < 4; i++)
        {
            (Tensor query, Tensor keys, Tensor values) = (Random(4, step), Random(2, step), Random(2, step));
            int[] counts = [step, step / 2];
            Tensor expected = reference.Forward(query, keys, values, 0.125, counts);
            Compare.Close(cache.Forward(query, keys, values, counts: counts), expected, 2e-5, 2e-5, $"step {i}");
        }
    }

    /// <summary>Padding may hold anything. It takes part in a prompt, in a block over a past, and in a few tokens at once.</summary>
    [TestCase(0, 50)]
    [TestCase(100, 50)]
    [TestCase(100, 6)]
    [TestCase(100, 1)]
    public void NaN_in_the_padding_does_not_reach_the_tokens(int past, int count)
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New();
        ReferenceCache reference = new(2, Options, 64);
        manual_seed(2);
        if (past > 0)
        {
            (Tensor earlierKeys, Tensor earlierValues) = (Random(2, past), Random(2, past));
            cache.Append(earlierKeys, earlierValues);
            reference.Append(earlierKeys, earlierValues, [past, past]);
        }

        int[] counts = [count / 2, count];
        (Tensor query, Tensor keys, Tensor values) = (Random(4, count), Random(2, count), Random(2, count));
        Tensor expected = reference.Forward(query, keys, values, 0.125, counts);
        foreach (Tensor tensor in new[] { query, keys, values })
        {
            tensor[0].narrow(1, counts[0], count - counts[0]).fill_(float.NaN);
        }

        Compare.Close(cache.Forward(query, keys, values, counts: counts), expected, 2e-5, 2e-5, "with padding");
        Tensor next = Random(4, 1);
        Compare.Close(cache.Attend(next), reference.Attend(next, 0.125), 2e-5, 2e-5, "afterwards");
    }

    [TestCase(10, TestName = "A_NaN_key_shows_in_its_own_heads(compressed)")]
    [TestCase(145, TestName = "A_NaN_key_shows_in_its_own_heads(dense)")]
    public void A_NaN_key_shows_in_its_own_heads(int token)
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New();
        manual_seed(3);
        Tensor keys = Random(2, 150);
        keys[1, 0, token, 7] = tensor(float.NaN, device: device);
        cache.Append(keys, Random(2, 150));
        Tensor output = cache.Attend(Random(4, 1)).isnan();
        // Sequence 1, KV head 0: query heads 0 and 1.
        Assert.That(Values.Of(output[1].narrow(0, 0, 2)), Is.All.EqualTo(1));
        Assert.That(Values.Of(output[1].narrow(0, 2, 2)), Is.All.Zero);
        Assert.That(Values.Of(output[0]), Is.All.Zero);
    }

    [TestCase(10, TestName = "NaN_and_infinite_values_show_in_their_own_channels(compressed)")]
    [TestCase(145, TestName = "NaN_and_infinite_values_show_in_their_own_channels(dense)")]
    public void NaN_and_infinite_values_show_in_their_own_channels(int token)
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New();
        manual_seed(4);
        Tensor values = Random(2, 150);
        values[0, 1, token, 5] = tensor(float.NaN, device: device);
        values[0, 1, token, 6] = tensor(float.NegativeInfinity, device: device);
        cache.Append(Random(2, 150), values);
        float[] output = Values.Of(cache.Attend(Random(4, 1))[0, 2, 0]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(output[5], Is.NaN);
            Assert.That(output[6], Is.EqualTo(float.NegativeInfinity));
            Assert.That(output.Where((_, channel) => channel is not (5 or 6)), Is.All.Matches<float>(float.IsFinite));
        }
    }

    /// <summary>An infinite score leaves no weights that sum to one, in torch as here.</summary>
    [TestCase(10, TestName = "An_infinite_key_gives_NaN(compressed)")]
    [TestCase(145, TestName = "An_infinite_key_gives_NaN(dense)")]
    public void An_infinite_key_gives_NaN(int token)
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New();
        manual_seed(5);
        Tensor keys = Random(2, 150);
        keys[0, 0, token, 0] = tensor(float.PositiveInfinity, device: device);
        cache.Append(keys, Random(2, 150));
        Tensor output = cache.Attend(ones(2, 4, 1, 64, device: device));
        Assert.That(Values.Of(output[0, 0]), Is.All.NaN);
        Assert.That(Values.Of(output[1]), Is.All.Matches<float>(float.IsFinite));
    }

    /// <summary>A score of −∞ takes no part; if all are, there is nothing to weigh.</summary>
    [Test]
    public void A_key_of_negative_infinite_score_has_no_weight()
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = New();
        manual_seed(6);
        (Tensor keys, Tensor values) = (Random(2, 150), Random(2, 150));
        foreach (int token in new[] { 3, 148 })
        {
            keys[0, 0, token, 0] = tensor(float.NegativeInfinity, device: device);
            values[0, 0, token].fill_(1e6);
        }

        cache.Append(keys, values);
        Assert.That(Values.Of(cache.Attend(ones(2, 4, 1, 64, device: device))), Is.All.InRange(-10f, 10f));
    }

    [TestCase(ScalarType.Float32)]
    [TestCase(ScalarType.Float16)]
    [TestCase(ScalarType.BFloat16)]
    public void Keys_of_zeros_weigh_all_values_alike(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(1, s_shape, dtype, new Device(device), Options);
        manual_seed(7);
        // Zero in both signs, and values that pruning leaves alone: half of the channels.
        Tensor keys = zeros(1, 1, 150, 64, dtype: dtype, device: device);
        keys.narrow(2, 0, 70).neg_();
        Tensor values = cat([Random(1, 150)[0].unsqueeze(0).narrow(3, 0, 32), zeros(1, 1, 150, 32, device: device)], 3).to(dtype);
        cache.Append(keys, values);
        Tensor expected = values.to(ScalarType.Float64).mean([2], keepdim: true);
        double rounding = dtype == ScalarType.Float32 ? 1e-6 : dtype == ScalarType.Float16 ? 1e-3 : 8e-3;
        Compare.Close(cache.Attend(ones(1, 1, 1, 64, dtype: dtype, device: device)), expected, rounding, 1e-5, dtype.ToString());
    }

    /// <summary>The largest numbers of a type as scores: nothing overflows on the way.</summary>
    [TestCase(ScalarType.Float16, 200)]
    [TestCase(ScalarType.BFloat16, 1e18)]
    [TestCase(ScalarType.Float32, 1e17)]
    public void Large_scores_choose_one_token(ScalarType dtype, double size)
    {
        using var scope = NewDisposeScope();
        using MustafarCache cache = new(1, s_shape, dtype, new Device(device), Options);
        manual_seed(8);
        Tensor keys = zeros(1, 1, 150, 64, dtype: dtype, device: device);
        keys[0, 0, 40].fill_(size);
        Tensor values = Random(1, 150).narrow(0, 0, 1).to(dtype);
        cache.Append(keys, values);
        Tensor query = full(new long[] { 1, 1, 1, 64 }, size, dtype: dtype, device: device);
        Compare.Same(cache.Attend(query)[0, 0, 0], ReferencePruning.Prune(values, 32)[0, 0, 40], dtype.ToString());
    }

    private MustafarCache New() => new(2, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, new Device(device), Options);

    private Tensor Random(int heads, int tokens) => randn(2, heads, tokens, 64).to(device);
}
