using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Eviction;

/// <summary>A model's cache with one sequence or more, and the same tokens in plain form.</summary>
internal sealed class EvictionSetup : IDisposable
{
    public const int Layers = 2;
    public const int KvHeads = 2;
    public const int Heads = 4;
    public const int HeadDim = 64;

    private readonly string _device;
    private readonly ScalarType _dtype;

    public EvictionSetup(string device, MustafarOptions options, ScalarType dtype = ScalarType.Float32, CacheLimits? limits = null)
    {
        (_device, _dtype) = (device, dtype);
        Cache = new MustafarModelCache(Layers, new() { NumKvHeads = KvHeads, HeadDim = HeadDim }, dtype, torch.device(device), options, limits);
        Sequence = Cache.AddSequence();
    }

    public MustafarModelCache Cache { get; }

    public int Sequence { get; }

    public PlainTokens Plain { get; } = new(Layers, KvHeads);

    /// <summary>Random tokens that keep another one's order, the same for all layers and heads or not: Int64 [layers, heads, count].</summary>
    public static Tensor RandomTokens(Random random, int length, int count, int sinks = 0)
    {
        long[] tokens = [.. Enumerable.Range(0, Layers * KvHeads).SelectMany(_ =>
            Enumerable.Range(0, sinks).Concat(Enumerable.Range(sinks, length - sinks).OrderBy(_ => random.Next()).Take(count - sinks).Order()).Select(i => (long)i))];
        return tensor(tokens).reshape(Layers, KvHeads, count);
    }

    /// <summary>Adds tokens to both, and compares their attention.</summary>
    public void Step(int count, string what, bool compares = true)
    {
        using IDisposable noGrad = no_grad();
        (Tensor[] actual, Tensor[] expected) = Step(Sequence, Plain, count);
        for (int layer = 0; layer < Layers && compares; layer++)
        {
            double tolerance = Compare.AttentionTolerance(_dtype);
            Compare.Close(actual[layer], expected[layer], tolerance, tolerance, $"{what}, layer {layer}");
        }
    }

    /// <summary>Adds tokens to a sequence and to plain ones.</summary>
    public (Tensor[] Actual, Tensor[] Expected) Step(int sequence, PlainTokens plain, int count)
    {
        Tensor[] actual = new Tensor[Layers], expected = new Tensor[Layers];
        using CacheStep step = Cache.BeginStep([sequence], count);
        for (int layer = 0; layer < Layers; layer++)
        {
            (Tensor query, Tensor keys, Tensor values) = (New(Heads), New(KvHeads), New(KvHeads));
            actual[layer] = step.Attend(layer, query, keys, values).to(ScalarType.Float64);
            expected[layer] = plain.Attend(layer, query, keys, values);
        }

        step.Commit();
        return (actual, expected);

        Tensor New(int heads) => randn([1, heads, count, HeadDim], dtype: ScalarType.Float32).to(_dtype).to(torch.device(_device));
    }

    public void Dispose() => Cache.Dispose();
}
