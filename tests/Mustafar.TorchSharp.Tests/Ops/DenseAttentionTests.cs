using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

/// <summary>Attention over dense tokens in each of its forms: on CUDA each is a kernel of its own.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class DenseAttentionTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    /// <summary>Prompts of heads alone and in groups, whose queries are a view of a projection.</summary>
    [Test]
    public void A_prompt_attends_to_itself(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(16, 64, 80, 128, 256)] int headDim, [Values(1, 4)] int group)
    {
        foreach (int tokens in new[] { 1, 2, 33, 130 })
        {
            CheckPrompt(dtype, batch: 2, numKvHeads: 2, group, tokens, headDim);
        }
    }

    /// <summary>On CUDA from 2048 tokens on by another kernel.</summary>
    [Test]
    [Pairwise]
    public void A_long_prompt_attends_to_itself(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(64, 128)] int headDim, [Values(1, 2)] int group, [Values(2047, 2048, 2091)] int tokens) =>
        CheckPrompt(dtype, batch: 1, numKvHeads: 1, group, tokens, headDim);

    /// <summary>Blocks of queries under a window, beside the first tokens.</summary>
    [Test]
    public void A_prompt_sees_a_window(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(1, 2)] int group, [Values(1, 90, 600)] int window, [Values(0, 4)] int sinks)
    {
        using var scope = NewDisposeScope();
        manual_seed(window);
        const int tokens = 1100;
        Tensor query = Random(dtype, 1, group, tokens, 64);
        (Tensor keys, Tensor values) = (Random(dtype, 1, 1, tokens, 64), Random(dtype, 1, 1, tokens, 64));
        Tensor seen = ones(tokens, tokens, dtype: ScalarType.Bool, device: device).tril().logical_and(
            ones(tokens, tokens, dtype: ScalarType.Bool, device: device).triu(1 - window));
        seen.narrow(1, 0, sinks).copy_(ones(tokens, sinks, dtype: ScalarType.Bool, device: device).tril());
        CheckClose(DenseAttention.Causal(query, keys, values, null, window, sinks), Exact(query, keys, values, null, seen), dtype, "window");
    }

    /// <summary>Any mask, of the whole batch or of each sequence, over tokens of any number.</summary>
    [Test]
    public void A_mask_says_what_is_seen(
        [ValueSource(nameof(DTypes))] ScalarType dtype, [Values(1, 4)] int group, [Values(1, 3)] int masks, [Values(1, 9, 100)] int queries)
    {
        foreach (int tokens in new[] { 1, 7, 64, 201 })
        {
            using var scope = NewDisposeScope();
            manual_seed(tokens);
            Tensor query = Random(dtype, 3, 2 * group, queries, 64);
            (Tensor keys, Tensor values) = (Random(dtype, 3, 2, tokens, 64), Random(dtype, 3, 2, tokens, 64));
            Tensor mask = rand(masks, 1, queries, tokens).gt(0.5).to(device);
            mask.narrow(3, 0, 1).fill_(true);
            Tensor output = DenseAttention.Forward(query, keys, values, 0.1, mask, causal: false, finite: true);
            CheckClose(output, Exact(query, keys, values, 0.1, mask), dtype, $"{tokens} tokens");
        }
    }

    /// <summary>Heads and tokens of a larger tensor that begin at any element, of which rows may be apart by any number.</summary>
    [Test]
    public void Views_lie_anywhere([ValueSource(nameof(DTypes))] ScalarType dtype, [Values(1, 4)] int group, [Values(20, 2060)] int tokens)
    {
        using var scope = NewDisposeScope();
        manual_seed(tokens);
        (Tensor query, Tensor keys, Tensor values) = (View(group, 3), View(1, 1), View(1, 2));
        Tensor seen = ones(tokens, tokens, dtype: ScalarType.Bool, device: device).tril();
        Tensor expected = Exact(query, keys, values, null, seen);
        CheckClose(DenseAttention.Causal(query, keys, values, null, window: null), expected, dtype, "causal");
        CheckClose(DenseAttention.Forward(query, keys, values, null, seen, causal: false, finite: true), expected, dtype, "masked");

        Tensor View(int heads, int first) => Random(dtype, 1, heads, tokens, 64 + 5).narrow(3, first, 64);
    }

    private void CheckPrompt(ScalarType dtype, int batch, int numKvHeads, int group, int tokens, int headDim)
    {
        using var scope = NewDisposeScope();
        manual_seed(tokens);
        Tensor query = Random(dtype, batch, tokens, numKvHeads * group, headDim).transpose(1, 2);
        (Tensor keys, Tensor values) = (Random(dtype, batch, numKvHeads, tokens, headDim), Random(dtype, batch, numKvHeads, tokens, headDim));
        double? scale = tokens % 2 == 0 ? null : 0.7 / Math.Sqrt(headDim);
        Tensor seen = ones(tokens, tokens, dtype: ScalarType.Bool, device: device).tril();
        CheckClose(
            DenseAttention.Causal(query, keys, values, scale, window: null), Exact(query, keys, values, scale, seen), dtype, $"{tokens} tokens");
    }

    // softmax(scale · q · kᵀ) · v in double precision over what is seen.
    private static Tensor Exact(Tensor query, Tensor keys, Tensor values, double? scale, Tensor seen)
    {
        long group = query.size(1) / keys.size(1);
        Tensor scores = matmul(Double(query), Double(keys).repeat_interleave(group, 1).transpose(2, 3)) * (scale ?? 1 / Math.Sqrt(query.size(3)));
        return matmul(scores.masked_fill(seen.cpu().logical_not(), double.NegativeInfinity).softmax(-1), Double(values).repeat_interleave(group, 1));

        static Tensor Double(Tensor tensor) => tensor.cpu().to(ScalarType.Float64);
    }

    // A rounding or two of values of size 1.
    private static void CheckClose(Tensor actual, Tensor expected, ScalarType dtype, string what)
    {
        double tolerance = dtype == ScalarType.Float32 ? 2e-5 : dtype == ScalarType.Float16 ? 2e-3 : 1.5e-2;
        Assert.That(actual.dtype, Is.EqualTo(dtype), what);
        Compare.Close(actual, expected, tolerance, tolerance, what);
    }

    private Tensor Random(ScalarType dtype, params long[] shape) => randn(shape).to(dtype).to(device);
}
