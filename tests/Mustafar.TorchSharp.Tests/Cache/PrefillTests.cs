using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>The same tokens in one piece, in blocks, or one at a time.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class PrefillTests(string device)
{
    private const int HeadDim = 64;
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 2, HeadDim = HeadDim };
    private static readonly double Scale = 1 / Math.Sqrt(HeadDim);

    /// <summary>What is stored depends on the tokens and not on how they came: the same bits.</summary>
    [TestCase(ScalarType.Float32, 0, 32)]
    [TestCase(ScalarType.Float16, 33, 64)]
    [TestCase(ScalarType.BFloat16, 100, 96)]
    public void What_is_stored_does_not_depend_on_how_the_tokens_came(ScalarType dtype, int window, int group)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        MustafarOptions options = new() { LocalWindow = window, GroupSize = group };
        (Tensor keys, Tensor values) = (Random(2, 700, dtype), Random(2, 700, dtype));
        Tensor query = Random(4, 3, dtype);
        using MustafarCache whole = new(2, s_shape, dtype, new Device(device), options);
        whole.Append(keys, values);
        Tensor expected = whole.Attend(query);
        Assert.That(whole.CompressedLengths, Is.All.EqualTo(ReferenceCache.Rule(700, options)).And.All.GreaterThan(0));
        foreach (int step in new[] { 1, 7, 31, 32, 33, 65, 256, 699 })
        {
            using MustafarCache cache = new(2, s_shape, dtype, new Device(device), options);
            for (int first = 0; first < 700; first += step)
            {
                int count = Math.Min(step, 700 - first);
                cache.Append(keys.narrow(2, first, count), values.narrow(2, first, count));
            }

            Assert.That(cache.CompressedLengths, Is.EqualTo(whole.CompressedLengths), $"steps of {step}");
            Compare.Same(cache.Attend(query), expected.to(dtype), $"steps of {step}");
        }
    }

    /// <summary>As long as nothing is compressed, a prompt in blocks is the prompt in one piece, and both are dense attention.</summary>
    [TestCase(1)]
    [TestCase(5)]
    [TestCase(8)]
    [TestCase(9)]
    [TestCase(64)]
    public void Under_a_window_that_holds_all_blocks_give_dense_attention(int step)
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        MustafarOptions options = new() { LocalWindow = 300 };
        (Tensor query, Tensor keys, Tensor values) = (Random(4, 150), Random(2, 150), Random(2, 150));
        Tensor expected = ReferenceAttention.Attend(query, keys, values, Scale, [150, 150]);
        using MustafarCache whole = New(options);
        Compare.Close(whole.Forward(query, keys, values), expected, 1e-5, 1e-5, "in one piece");
        using MustafarCache cache = New(options);
        Compare.Close(InBlocks(cache, query, keys, values, step), expected, 1e-5, 1e-5, $"blocks of {step}");
        Assert.That(cache.CompressedLengths, Is.All.Zero);
    }

    /// <summary>Tokens of a prompt see each other dense, however many of them are compressed afterwards.</summary>
    [Test]
    public void A_prompt_attends_to_itself_dense()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        (Tensor query, Tensor keys, Tensor values) = (Random(4, 200), Random(2, 200), Random(2, 200));
        using MustafarCache cache = New(new MustafarOptions { KeySparsity = 0.9, ValueSparsity = 0.9, LocalWindow = 0, GroupSize = 32 });
        Compare.Close(
            cache.Forward(query, keys, values), ReferenceAttention.Attend(query, keys, values, Scale, [200, 200]), 1e-5, 1e-5, "prompt");
        Assert.That(cache.CompressedLengths, Is.All.EqualTo(192));
    }

    /// <summary>A past of several segments, compressed and dense, under a window in which the ring has gone round.</summary>
    [TestCase(1)]
    [TestCase(8)]
    [TestCase(24)]
    public void A_block_sees_a_long_past(int count)
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        MustafarOptions options = new() { LocalWindow = 1300, GroupSize = 96 };
        using MustafarCache cache = New(options);
        ReferenceCache reference = new(2, options, HeadDim);
        int[] lengths = [4000, 2900];
        (Tensor keys, Tensor values) = (Random(2, 4000), Random(2, 4000));
        cache.Append(keys, values, lengths);
        reference.Append(keys, values, lengths);
        for (int i = 0; i < 3; i++)
        {
            (Tensor query, Tensor newKeys, Tensor newValues) = (Random(4, count), Random(2, count), Random(2, count));
            Tensor expected = reference.Forward(query, newKeys, newValues, Scale, [count, count]);
            Compare.Close(cache.Forward(query, newKeys, newValues), expected, 1e-5, 1e-5, $"block {i}");
        }
    }

    /// <summary>Several queries at tokens that are already in the cache see what a query at each of them alone would see.</summary>
    [TestCase(2)]
    [TestCase(8)]
    [TestCase(40)]
    public void Queries_at_cached_tokens_are_causal(int count)
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        MustafarOptions options = new() { LocalWindow = 16, GroupSize = 32 };
        using MustafarCache cache = New(options);
        ReferenceCache reference = new(2, options, HeadDim);
        int[] lengths = [97, 5];
        (Tensor keys, Tensor values, Tensor query) = (Random(2, 97), Random(2, 97), Random(4, count));
        cache.Append(keys, values, lengths);
        reference.Append(keys, values, lengths);
        Tensor output = cache.Attend(query);
        Compare.Close(output, reference.Attend(query, Scale), 1e-5, 1e-5, $"{count} queries");
        if (count > 5)
        {
            Assert.That(Values.Of(output[1].narrow(1, 0, count - 5)), Is.All.Zero, "queries before the first token");
        }
    }

    /// <summary>Going back and taking the same tokens again gives the same, if no compressed group has to return.</summary>
    [Test]
    public void Truncating_within_the_window_and_appending_again_changes_nothing()
    {
        using var scope = NewDisposeScope();
        manual_seed(6);
        MustafarOptions options = new() { LocalWindow = 32, GroupSize = 32 };
        (Tensor keys, Tensor values, Tensor query) = (Random(2, 127), Random(2, 127), Random(4, 2));
        using MustafarCache cache = New(options);
        cache.Append(keys, values);
        Tensor expected = cache.Attend(query);
        long bytes = cache.Memory.TotalBytes;
        cache.Truncate(96);
        Assert.That(cache.CompressedLengths, Is.All.EqualTo(64));
        cache.Append(keys.narrow(2, 96, 31), values.narrow(2, 96, 31));
        Compare.Same(cache.Attend(query), expected.to(ScalarType.Float32), "again");
        Assert.That(cache.Memory.TotalBytes, Is.EqualTo(bytes));
    }

    private MustafarCache New(MustafarOptions options) => new(2, s_shape, ScalarType.Float32, new Device(device), options);

    private Tensor Random(int heads, int tokens, ScalarType dtype = ScalarType.Float32) =>
        randn(2, heads, tokens, HeadDim).to(dtype).to(device);

    private static Tensor InBlocks(MustafarCache cache, Tensor query, Tensor keys, Tensor values, int step)
    {
        List<Tensor> outputs = [];
        for (int first = 0; first < query.shape[2]; first += step)
        {
            int count = (int)Math.Min(step, query.shape[2] - first);
            outputs.Add(cache.Forward(query.narrow(2, first, count), keys.narrow(2, first, count), values.narrow(2, first, count)));
        }

        return cat(outputs, 2);
    }
}
