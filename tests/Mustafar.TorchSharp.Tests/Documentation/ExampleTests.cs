using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Documentation;

/// <summary>The examples of the core's XML comments, as they show them.</summary>
[TestFixture]
internal sealed class ExampleTests : TensorFixture
{
    [Test]
    public void What_is_shown_is_run_here() => ShownCode.AssertExamplesAreRun(
        "managed/Mustafar.TorchSharp",
        "tests/Mustafar.TorchSharp.Tests/Documentation/ExampleTests.cs",
        nameof(MustafarOptions),
        nameof(KeyValueShape),
        nameof(MustafarCache),
        nameof(ModelKeyValueCache),
        nameof(MustafarModelCache),
        nameof(DecodeGraph),
        nameof(MustafarCacheFile),
        nameof(MustafarAttention),
        nameof(BitmapTensor),
        nameof(MustafarOps),
        nameof(SamplingState),
        nameof(MustafarRuntime));

    [Test]
    public void Options()
    {
        MustafarOptions options = new() { KeySparsity = 0.5, ValueSparsity = 0.7, SinkTokens = 4, LocalWindow = 128 };
        int keys = options.KeysKept(headDim: 128);
        int values = options.ValuesKept(headDim: 128);

        MustafarOptions fewerBits = options with { KeyBits = 4, ValueBits = 4 };

        Assert.That((keys, values), Is.EqualTo((64, 40)));
        Assert.That(fewerBits.KeysKept(128), Is.EqualTo(keys));
    }

    [Test]
    public void Shape()
    {
        KeyValueShape shape = new() { NumKvHeads = 8, HeadDim = 128 };
        using MustafarCache pruned = new(batchSize: 1, shape, ScalarType.BFloat16);
        using DenseCache dense = new(batchSize: 1, shape, ScalarType.BFloat16);

        Assert.That(pruned.KeyValueShape, Is.EqualTo(dense.KeyValueShape));
    }

    [Test]
    public void CacheOfALayer()
    {
        KeyValueShape shape = new() { NumKvHeads = 2, HeadDim = 64 };
        MustafarOptions options = new() { KeySparsity = 0.5, ValueSparsity = 0.7 };
        using MustafarCache cache = new(batchSize: 1, shape, ScalarType.Float32, CPU, options);

        Tensor prompt = cache.Forward(query: randn(1, 4, 300, 64), keys: randn(1, 2, 300, 64), values: randn(1, 2, 300, 64));
        Tensor next = cache.Forward(query: randn(1, 4, 1, 64), keys: randn(1, 2, 1, 64), values: randn(1, 2, 1, 64));
        Console.WriteLine($"{cache.Length} tokens, {cache.Memory}");

        Assert.That((prompt.size(2), next.size(2), cache.Length), Is.EqualTo((300, 1, 301)));
    }

    [Test]
    public void CacheOfAModel()
    {
        KeyValueShape shape = new() { NumKvHeads = 2, HeadDim = 64 };
        CacheLimits limits = new() { MaxSequences = 8, BudgetBytes = 64 << 20 };
        using MustafarModelCache cache = new(numLayers: 4, shape, ScalarType.Float32, CPU, MustafarPresets.FourBits, limits);
        int first = cache.AddSequence(), second = cache.AddSequence();

        using (CacheStep step = cache.BeginStep([first, second], tokens: 100))
        {
            for (int layer = 0; layer < cache.NumLayers; layer++)
            {
                Tensor attended = step.Attend(layer, query: randn(2, 4, 100, 64), keys: randn(2, 2, 100, 64), values: randn(2, 2, 100, 64));
                Assert.That(attended.shape, Is.EqualTo((long[])[2, 4, 100, 64]));
            }

            step.Commit();
        }

        int fork = cache.Fork(first);
        cache.RemoveSequence(second);

        Assert.That(cache.Sequences, Is.EqualTo((int[])[first, fork]));
        Assert.That(cache.LengthOf(fork), Is.EqualTo(100));
    }

    [Test]
    public void StepsOfAModel()
    {
        const int tokens = 3;
        using DenseModelCache cache = new(numLayers: 2, new KeyValueShape { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32);
        Tensor query = randn(1, 4, tokens, 64), keys = randn(1, 2, tokens, 64), values = randn(1, 2, tokens, 64);

        int sequence = cache.AddSequence();
        using (CacheStep step = cache.BeginStep([sequence], tokens))
        {
            for (int layer = 0; layer < cache.NumLayers; layer++)
            {
                Tensor attended = step.Attend(layer, query, keys, values);
                Assert.That(attended.shape, Is.EqualTo(query.shape));
            }

            step.Commit();
        }

        Assert.That(cache.LengthOf(sequence), Is.EqualTo(tokens));
    }

    [Test]
    public void DecodeSteps()
    {
        using MustafarModelCache cache = new(numLayers: 2, new KeyValueShape { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32);
        int sequence = cache.AddSequence();
        Tensor query = randn(1, 4, 1, 64), keys = randn(1, 2, 1, 64), values = randn(1, 2, 1, 64), output = zeros(1, 4, 1, 64);

        using DecodeGraph decode = new(cache, step =>
        {
            for (int layer = 0; layer < cache.NumLayers; layer++)
            {
                output.copy_(step.Attend(layer, query, keys, values));
            }
        });

        decode.Run([sequence]);
        decode.Run([sequence]);

        Assert.That(cache.LengthOf(sequence), Is.EqualTo(2));
        Assert.That(output.abs().max().item<float>(), Is.Positive);
    }

    [Test]
    public void Files()
    {
        using TemporaryDirectory directory = new();
        string path = directory.File("cache.safetensors");
        KeyValueShape shape = new() { NumKvHeads = 2, HeadDim = 64 };
        using MustafarCache cache = new(1, shape, ScalarType.Float32), empty = new(1, shape, ScalarType.Float32);
        cache.Append(randn(1, 2, 100, 64), randn(1, 2, 100, 64));
        MustafarCache[] layers = [cache], restored = [empty];

        MustafarCacheFile.Save(path, layers, fingerprint: "my model, version 1");
        MustafarCacheFile.Load(path, restored, fingerprint: "my model, version 1");

        Assert.That(empty.Length, Is.EqualTo(100));
    }

    [Test]
    public void Fingerprint()
    {
        using TemporaryDirectory directory = new();
        string path = directory.File("cache.safetensors");
        using TorchSharp.Modules.Linear model = nn.Linear(4, 4);
        using MustafarCache cache = new(1, new KeyValueShape { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float32);
        MustafarCache[] layers = [cache];

        string fingerprint = MustafarCacheFile.FingerprintOf(model);
        MustafarCacheFile.Save(path, layers, fingerprint);

        Assert.That(path, Does.Exist);
    }

    [Test]
    public void AttentionLayer()
    {
        MustafarAttentionOptions options = new() { HiddenSize = 512, NumHeads = 8, NumKvHeads = 2, HeadDim = 64 };
        using RotaryEmbedding rotary = new(new RotaryOptions { HeadDim = 64, Theta = 500000 });
        using MustafarAttention attention = new(options, rotary);
        using MustafarCache cache = new(batchSize: 1, options.KeyValueShape, ScalarType.Float32);

        Tensor hidden = attention.forward(randn(1, 100, 512), cache);
        hidden = attention.forward(randn(1, 1, 512), cache);

        Assert.That(hidden.shape, Is.EqualTo((long[])[1, 1, 512]));
        Assert.That(cache.Length, Is.EqualTo(101));
    }

    [Test]
    public void CompressedTensors()
    {
        Tensor keys = randn(1, 2, 1000, 64), values = randn(1, 2, 1000, 64);
        using BitmapTensor compressedKeys = BitmapTensor.Compress(keys, kept: 32);
        using BitmapTensor compressedValues = BitmapTensor.Compress(values, kept: 20, bits: 8);

        Tensor scores = compressedKeys.KeyScores(randn(1, 4, 1, 64));
        Tensor attended = MustafarOps.Attention(randn(1, 4, 1, 64), compressedKeys, compressedValues);
        Console.WriteLine($"{compressedKeys.Bytes} bytes instead of {compressedKeys.DenseBytes}");

        Assert.That((scores.size(3), attended.size(3)), Is.EqualTo((1000, 64)));
        Assert.That((compressedKeys.Kept, compressedValues.Kept), Is.EqualTo((32, 20)));
    }

    [Test]
    public void Pruning()
    {
        Tensor keys = randn(1, 2, 1000, 64);
        Tensor mask = MustafarOps.PruneMask(keys, kept: 20);
        Tensor pruned = MustafarOps.Prune(keys, kept: 20);
        Tensor twoOfFour = MustafarOps.Prune(keys, kept: 32, SparsityPattern.BalancedKeys);

        Assert.That(pruned.eq(keys * mask).all().item<bool>(), Is.True);
        Assert.That(twoOfFour.count_nonzero().item<long>(), Is.EqualTo(keys.numel() / 2));
    }

    [Test]
    public void Sampling()
    {
        const int vocabSize = 100;
        int[] promptIds = [1, 2, 3];
        Tensor logits = randn(2, vocabSize);

        using SamplingState state = new(batchSize: 2, vocabSize, logits.device);
        state.Restart(0, new SamplingParameters { Temperature = 0.7, TopP = 0.9, Seed = 1 }, promptIds);
        state.Restart(1, SamplingParameters.Greedy, promptIds);
        Tensor ids = MustafarOps.Sample(logits, state);

        Assert.That(ids[1].item<long>(), Is.EqualTo(logits[1].argmax().item<long>()));
    }

    [Test]
    public void Runtime()
    {
        Console.WriteLine(MustafarRuntime.Describe());
        torch.Device device = MustafarRuntime.WhyNoCuda is null ? torch.CUDA : torch.CPU;

        Assert.That(zeros(1, device: device).device_type, Is.EqualTo(device.type));
    }
}
