using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.DropIn.Models.GenAI;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>What the readme and docs/drop-in.md show, as they show it.</summary>
[TestFixture]
public sealed class ReadmeTests : TensorFixture
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = 8, HeadDim = 128 };

    [Test]
    public void AnExistingModel()
    {
        using LlamaForCausalLM model = new(heads: 4, kvHeads: 2);

        model.eval();
        using MustafarAttachment attached = model.UseMustafar(new MustafarOptions { KeySparsity = 0.5, ValueSparsity = 0.7 });
        Assert.That(Generate(model, tokens: 120), Is.EqualTo(120));
        Assert.That(attached.Memory.CompressedBytes, Is.Positive);
    }

    [Test]
    public void AModelWithItsOwnProjections()
    {
        Tensor query = randn(1, 32, 100, 128, dtype: ScalarType.BFloat16);
        Tensor keys = randn(1, 8, 100, 128, dtype: ScalarType.BFloat16);
        Tensor values = randn(1, 8, 100, 128, dtype: ScalarType.BFloat16);

        MustafarOptions options = new() { KeySparsity = 0.5, ValueSparsity = 0.7 };
        KeyValueShape shape = new() { NumKvHeads = 8, HeadDim = 128 };
        using MustafarCache cache = new(batchSize: 1, shape, ScalarType.BFloat16, CPU, options);
        Tensor output = cache.Forward(query, keys, values);

        Assert.That(output.shape, Is.EqualTo(query.shape));
        Assert.That(cache.CompressedLengths, Is.EqualTo((int[])[64]));
    }

    [Test]
    public void ChoiceOfChannels()
    {
        MustafarOptions aware = new() { KeySparsity = 0.5, KeySelection = KeySelection.OutputAware };
        MustafarOptions own = new() { ValueSelection = ValueSelection.ByScores("squares", input => input.Tokens.square().to(ScalarType.Float32)) };

        Assert.That(Generated(aware), Is.Not.EqualTo(Generated(aware with { KeySelection = KeySelection.Magnitude })));
        Assert.That(Generated(own), Is.EqualTo(Generated(new MustafarOptions())), "squares rank as magnitudes do");

        // The attention of a token over the compressed prompt.
        static float[] Generated(MustafarOptions options)
        {
            manual_seed(1);
            using MustafarCache cache = new(1, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32, options: options);
            Tensor keys = randn(1, 2, 200, 64), query = randn(1, 4, 200, 64) * arange(1f, 65, dtype: ScalarType.Float32);
            cache.Forward(query, keys, keys);
            return [.. cache.Attend(query.narrow(2, 199, 1)).data<float>()];
        }
    }

    [Test]
    public void FewerBits()
    {
        MustafarOptions all = MustafarPresets.FourBits;
        MustafarOptions half = MustafarPresets.HalfInFourBits;
        MustafarOptions mixed = new() { KeySparsity = 0, KeyBits = 8, ValueSparsity = 0.5, BalancedValues = true, ValueBits = 4 };

        double[] ratios = [.. new[] { mixed, all, half }.Select(Ratio)];
        Assert.That(ratios, Is.Ordered.Descending.And.All.LessThan(0.55));

        static double Ratio(MustafarOptions options)
        {
            using MustafarCache cache = new(1, s_shape, ScalarType.BFloat16, options: options);
            Tensor tokens = randn(1, 8, 1000, 128, dtype: ScalarType.BFloat16);
            cache.Append(tokens, tokens);
            return cache.Memory.RatioToFp16;
        }
    }

    [Test]
    public void AllLayersOfAModel()
    {
        Tensor query = randn(2, 32, 1, 128, dtype: ScalarType.BFloat16);
        Tensor keys = randn(2, 8, 1, 128, dtype: ScalarType.BFloat16);
        Tensor values = randn(2, 8, 1, 128, dtype: ScalarType.BFloat16);

        MustafarOptions options = new() { KeySparsity = 0.5, ValueSparsity = 0.7 };
        KeyValueShape shape = new() { NumKvHeads = 8, HeadDim = 128 };
        CacheLimits limits = new() { MaxSequences = 8, BudgetBytes = 1L << 30 };
        using MustafarModelCache model = new(numLayers: 32, shape, ScalarType.BFloat16, CPU, options, limits);
        int first = model.AddSequence(), second = model.AddSequence();
        using (CacheStep step = model.BeginStep([first, second], tokens: 1))
        {
            for (int layer = 0; layer < model.NumLayers; layer++)
            {
                Tensor attended = step.Attend(layer, query, keys, values);
                Assert.That(attended.shape, Is.EqualTo(query.shape));
            }

            step.Commit();
        }

        int copy = model.Fork(first);
        model.RemoveSequence(second);
        Assert.That(model.Sequences, Is.EqualTo((int[])[first, copy]));
        Assert.That(model.LengthOf(copy), Is.EqualTo(1));

        Tensor result = zeros_like(query);
        using DecodeGraph decode = new(model, step =>
        {
            for (int layer = 0; layer < model.NumLayers; layer++)
            {
                result.copy_(step.Attend(layer, query, keys, values));
            }
        });
        decode.Run([first, copy]);
        Assert.That(model.LengthOf(copy), Is.EqualTo(2));
        Assert.That(result.abs().sum().to(ScalarType.Float32).item<float>(), Is.GreaterThan(0));
    }

    [Test]
    public void AWholeAttentionLayer()
    {
        using MustafarCache cache = new(1, s_shape, ScalarType.BFloat16);
        Tensor states = randn(1, 3, 4096, dtype: ScalarType.BFloat16);

        RotaryEmbedding rotary = new(new RotaryOptions { HeadDim = 128, Theta = 500000 });
        MustafarAttention attention = new(
            new MustafarAttentionOptions { HiddenSize = 4096, NumHeads = 32, NumKvHeads = 8, HeadDim = 128 }, rotary, ScalarType.BFloat16);
        Tensor hidden = attention.forward(states, cache);

        Assert.That(hidden.shape, Is.EqualTo(states.shape));
        Assert.That(cache.Length, Is.EqualTo(3));
    }

    [Test]
    public void Sampling()
    {
        const int vocabSize = 100;
        int[] promptIds = [1, 2, 3];
        Tensor logits = randn(2, vocabSize);

        using SamplingState state = new(batchSize: 2, vocabSize, logits.device);
        state.Restart(0, new SamplingParameters { Temperature = 0.7, TopP = 0.9, Seed = 1 }, promptIds);
        state.Restart(1, new SamplingParameters { TopK = 50, RepetitionPenalty = 1.1, Seed = 2 }, promptIds);
        Tensor ids = MustafarOps.Sample(logits, state);

        Assert.That(ids.dtype, Is.EqualTo(ScalarType.Int64));
        Assert.That(ids.shape, Is.EqualTo((long[])[2]));
    }

    [Test]
    public void CachesOnDisk()
    {
        using TemporaryDirectory directory = new();
        string path = directory.File("cache");
        using TorchSharp.Modules.Linear model = TorchSharp.torch.nn.Linear(4, 4);
        using MustafarCache cache = new(1, s_shape, ScalarType.BFloat16);
        MustafarCache[] layers = [cache];
        Tensor tokens = randn(1, 8, 100, 128, dtype: ScalarType.BFloat16);
        cache.Append(tokens, tokens);

        string fingerprint = MustafarCacheFile.FingerprintOf(model);
        MustafarCacheFile.Save(path, layers, fingerprint, new Dictionary<string, string> { ["title"] = "first" });

        cache.Clear();
        IReadOnlyDictionary<string, string> metadata = MustafarCacheFile.Load(path, layers, fingerprint);

        Assert.That(cache.Length, Is.EqualTo(100));
        Assert.That(metadata["title"], Is.EqualTo("first"));
    }

    [Test]
    public void WhatIsShownIsWhatIsTested()
    {
        string use = RepositoryFiles.Read("README.md").Split("\n## ").Single(section => section.StartsWith("Use\n", StringComparison.Ordinal));
        string[] shown =
        [
            .. ShownCode.OfMarkdown(use).Where(line => !line.StartsWith("using ", StringComparison.Ordinal) || line.Contains('=')),
        ];
        Assert.That(shown, Has.Length.GreaterThan(8));
        Assert.That(shown, Is.SubsetOf(ShownCode.OfSource("tests/Mustafar.TorchSharp.DropIn.Tests/Documentation/ReadmeTests.cs")));
        string[] adapter = [.. ShownCode.OfMarkdown(RepositoryFiles.Read("docs/drop-in.md"))];
        Assert.That(adapter, Has.Length.GreaterThan(25));
        Assert.That(adapter, Is.SubsetOf(ShownCode.OfSource("tests/Mustafar.TorchSharp.DropIn.Tests/Models/OwnAttention.cs")));
    }

    private static int Generate(LlamaForCausalLM model, int tokens)
    {
        using IDisposable noGrad = no_grad();
        DynamicKVCache cache = new();
        Tensor ids = Subject.Ids(1, 10, seed: 1);
        while (cache.GetSeqLen() < tokens)
        {
            int past = cache.GetSeqLen();
            ids = model.Logits(ids, past, cache, LlamaForCausalLM.CausalMask(ids, past)).narrow(1, -1, 1).argmax(-1);
        }

        return cache.GetSeqLen();
    }
}
