using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>A whole model whose cache evicts tokens, against a plain one that drops those that each rule names.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
public sealed class EvictionModelTests(string device)
{
    private const int Capacity = 64;
    private const int Group = 32;
    private const int Prompt = 150;
    private const int Decoded = 110;

    private static readonly (TokenEviction Eviction, Func<IReadOnlyList<double[]>, IEnumerable<int>> Rule)[] s_methods =
    [
        (TokenEviction.StreamingLlm(Capacity, 4), weights => Kept(weights, Capacity - 4, Enumerable.Range(0, Tokens(weights)).Select(i => -(double)i))),
        (TokenEviction.SnapKv(Capacity, 16, 5), weights => Kept(weights, 16, Pooled(Sums(weights.TakeLast(16), Tokens(weights) - 16), 5))),
        (TokenEviction.HeavyHitters(Capacity), weights => Kept(weights, Capacity / 2, Sums(weights, Tokens(weights) - (Capacity / 2)))),
    ];

    [Test]
    public void DecodesAsThePlainModel([Range(0, 2)] int method)
    {
        using DisposeScope scope = NewDisposeScope();
        using IDisposable mode = inference_mode();
        using LlamaForCausalLM model = New();
        (TokenEviction eviction, Func<IReadOnlyList<double[]>, IEnumerable<int>> rule) = s_methods[method];
        int[][] ids = [RandomModel.Prompt(model, Prompt + Decoded, seed: 1), RandomModel.Prompt(model, Prompt + Decoded, seed: 2)];
        Tensor[] expected = [.. ids.Select(sequence => Plain(model, sequence, rule)), .. ids.Select(sequence => Plain(model, sequence, rule: null))];
        MustafarOptions options = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 16, GroupSize = Group, Eviction = eviction };
        using ModelCache cache = ModelCache.Mustafar(model, options, batchSize: 2);
        Tensor all = TokenIds.ToTensor(ids, new Device(device));
        List<Tensor> logits = [model.forward(all.narrow(1, 0, Prompt), cache)];
        for (int i = Prompt; i < Prompt + Decoded; i++)
        {
            logits.Add(model.forward(all.narrow(1, i, 1), cache));
        }

        Tensor actual = cat(logits, 1).cpu().to(ScalarType.Float64);
        for (int b = 0; b < 2; b++)
        {
            Oracle.Compare.Close(actual[b], expected[b], 1e-4, 1e-4, $"sequence {b}");
            Assert.That((expected[b] - expected[2 + b]).abs().max().item<double>(), Is.GreaterThan(0.1), "eviction must have changed something");
        }

        Assert.That(cache.Lengths, Is.All.InRange(Capacity, Capacity + Group - 1));
    }

    // Scores after each token, [tokens, vocab_size]. A prompt attends to all of itself.
    private static Tensor Plain(LlamaForCausalLM model, int[] ids, Func<IReadOnlyList<double[]>, IEnumerable<int>>? rule)
    {
        PlainLlama plain = new(model);
        List<Tensor> scores = [];
        for (int i = 0; i < ids.Length; i++)
        {
            scores.Add(plain.Next(ids[i]));
            if (rule is not null && i >= Prompt - 1 && plain.Length >= Capacity + Group)
            {
                plain.Keep(rule);
            }
        }

        return stack(scores, 0);
    }

    private static int Tokens(IReadOnlyList<double[]> weights) => weights[^1].Length;

    // The latest tokens, and before them those of the highest scores.
    private static IEnumerable<int> Kept(IReadOnlyList<double[]> weights, int recent, IEnumerable<double> scores)
    {
        int earlier = Tokens(weights) - recent;
        double[] all = [.. scores.Take(earlier)];
        return [.. Enumerable.Range(0, earlier).OrderByDescending(i => all[i]).Take(Capacity - recent).Order(), .. Enumerable.Range(earlier, recent)];
    }

    private static double[] Sums(IEnumerable<double[]> weights, int tokens)
    {
        double[] sums = new double[tokens];
        foreach (double[] row in weights)
        {
            for (int i = 0; i < Math.Min(tokens, row.Length); i++)
            {
                sums[i] += row[i];
            }
        }

        return sums;
    }

    private static IEnumerable<double> Pooled(double[] scores, int size) => scores.Select((_, i) =>
        scores[Math.Max(0, i - (size / 2))..Math.Min(scores.Length, i + (size / 2) + 1)].Max());

    private LlamaForCausalLM New()
    {
        LlamaConfig config = new()
        {
            VocabSize = 40,
            HiddenSize = 48,
            IntermediateSize = 64,
            NumLayers = 2,
            NumHeads = 4,
            NumKvHeads = 2,
            HeadDim = 64,
            RmsNormEps = 1e-5,
            Rotary = new RotaryOptions { HeadDim = 64, Theta = 10000 },
            MaxPositions = 512,
        };

        // Weights large enough for attention that prefers some tokens.
        return RandomModel.New(config, seed: 11, deviation: 0.2, device: new Device(device));
    }
}
