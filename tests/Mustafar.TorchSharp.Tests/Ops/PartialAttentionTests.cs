using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Ops;

/// <summary>Attention to parts of the tokens, put together, is attention to all of them.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class PartialAttentionTests(string device)
{
    private static readonly ScalarType[] DTypes = [ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16];

    [Test]
    public void Parts_of_any_size_make_the_whole([ValueSource(nameof(DTypes))] ScalarType dtype, [Values(1, 4)] int group, [Values(64, 80)] int headDim)
    {
        for (int seed = 0; seed < 8; seed++)
        {
            using var scope = NewDisposeScope();
            manual_seed(seed);
            System.Random random = new(seed);
            int queries = random.Next(1, 40), tokens = queries + random.Next(60);
            double scale = 0.05 + random.NextDouble();
            Tensor query = Random(dtype, 1, queries, 2 * group, headDim).transpose(1, 2);
            (Tensor keys, Tensor values) = (Random(dtype, 1, 2, tokens, headDim), Random(dtype, 1, 2, tokens, headDim));
            SkipUnlessServed(query);
            PartialAttention? attended = null;
            int first = 0;
            for (int count; first < tokens - queries; first += count)
            {
                count = random.Next(1, tokens - queries - first + 1);
                PartialAttention part = PartialAttention.Full(query, keys.narrow(2, first, count), values.narrow(2, first, count), scale);
                attended = attended is null ? part : random.Next(2) == 0 ? attended.Merge(part) : part.Merge(attended);
                if (random.Next(4) == 0)
                {
                    first += count;
                    break;
                }
            }

            PartialAttention last = PartialAttention.Causal(
                query, keys.narrow(2, first, tokens - first), values.narrow(2, first, tokens - first), scale);
            PartialAttention whole = attended is null ? last : attended.Merge(last);
            double tolerance = dtype == ScalarType.Float32 ? 2e-5 : dtype == ScalarType.Float16 ? 3e-3 : 2e-2;
            string what = $"seed {seed}: {queries} queries, {tokens} tokens";
            Compare.Close(whole.Output[0], ReferenceAttention.Attend(query[0], keys[0], values[0], scale), tolerance, tolerance, what);
            Compare.Close(whole.LogSumExp[0], LogSumExp(query[0], keys[0], scale), 1e-5, 1e-4, what);
        }
    }

    /// <summary>A part whose scores are far below or above the other's counts for nothing or for all.</summary>
    [Test]
    public void Scores_far_apart_do_not_overflow([ValueSource(nameof(DTypes))] ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        Tensor query = ones(1, 1, 3, 64).to(dtype).to(device);
        SkipUnlessServed(query);
        PartialAttention low = Part(-30, value: 1), high = Part(30, value: 2);
        foreach (PartialAttention merged in new[] { low.Merge(high), high.Merge(low), low.Merge(low).Merge(high) })
        {
            Assert.That(Values.Of(merged.Output), Is.All.EqualTo(2));
            Assert.That(Values.Of(merged.LogSumExp), Is.All.EqualTo((30 * 64) + Math.Log(5)).Within(1e-3));
        }

        PartialAttention Part(double key, double value) => PartialAttention.Full(
            query, full(1, 1, 5, 64, key).to(dtype).to(device), full(1, 1, 5, 64, value).to(dtype).to(device), scale: 1);
    }

    private static void SkipUnlessServed(Tensor query)
    {
        if (!PartialAttention.Serves(query))
        {
            Assert.Ignore($"torch has no FlashAttention for {query.dtype} on {query.device}.");
        }
    }

    private static Tensor LogSumExp(Tensor query, Tensor keys, double scale)
    {
        long group = query.size(0) / keys.size(0), queries = query.size(1), tokens = keys.size(1);
        Tensor scores = matmul(
            query.cpu().to(ScalarType.Float64), keys.cpu().to(ScalarType.Float64).repeat_interleave(group, 0).transpose(1, 2)) * scale;
        Tensor seen = ones(queries, tokens, dtype: ScalarType.Bool).tril(tokens - queries);
        return scores.masked_fill(seen.logical_not(), double.NegativeInfinity).logsumexp(-1);
    }

    private Tensor Random(ScalarType dtype, params long[] shape) => randn(shape).to(dtype).to(device);
}
