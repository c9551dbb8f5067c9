using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>What torch's default device is doesn't matter: tensors are made where the caller's are.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
public sealed class DefaultDeviceTests(string device)
{
    private static readonly KeyValueShape s_shape = new() { NumKvHeads = KvHeads, HeadDim = HeadDim };

    // On it no tensor has memory, so nothing that is made there by mistake can give a result.
    private const string Elsewhere = "meta";

    private const int Heads = 4, KvHeads = 2, HeadDim = 64;

    [TearDown]
    public void RestoreDefaultDevice() => set_default_device(CPU);

    [Test]
    public void CachesGiveTheSame([Values] bool compressed, [Values(0, 4)] int sinks, [Values(null, 70)] int? window)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor expected = Run();
        set_default_device(new Device(Elsewhere));
        Tensor actual = Run();
        set_default_device(CPU);
        Compare.Same(actual, expected, Elsewhere);

        Tensor Run()
        {
            MustafarOptions options = new() { LocalWindow = 32, GroupSize = 32, SinkTokens = sinks, SlidingWindow = window };
            using KeyValueCache cache = compressed
                ? new MustafarCache(2, s_shape, ScalarType.Float16, new Device(device), options)
                : new DenseCache(2, s_shape, ScalarType.Float16, new Device(device), slidingWindow: window);
            using Generator random = new(5, CPU);
            List<Tensor> outputs = [];
            foreach (int tokens in (int[])[100, 1, 20, 3])
            {
                outputs.Add(cache.Forward(Random(Heads, tokens), Random(KvHeads, tokens), Random(KvHeads, tokens), counts: [tokens, tokens - 1]));
            }

            using KeyValueCache fork = cache.Fork([1, 0]);
            fork.Truncate(118);
            outputs.Add(fork.Forward(Random(Heads, 1), Random(KvHeads, 1), Random(KvHeads, 1)));
            return cat(outputs, 2).cpu();

            Tensor Random(int heads, int count) =>
                randn([2, heads, count, HeadDim], device: CPU, generator: random).to(ScalarType.Float16).to(new Device(device));
        }
    }

    [Test]
    public void FilesAreTheSame([Values] bool convert, [Values(0, 4)] int sinks)
    {
        using TemporaryDirectory directory = new();
        byte[] expected = Save("expected");
        set_default_device(new Device(Elsewhere));
        byte[] actual = Save("actual");
        Assert.That(actual, Is.EqualTo(expected));

        byte[] Save(string name)
        {
            using DisposeScope scope = NewDisposeScope();
            using MustafarCache cache = Make(), restored = Make();
            Tensor tokens = Scalars.Range(0, KvHeads * 100 * HeadDim, CPU).reshape(1, KvHeads, 100, HeadDim).to(ScalarType.Float16);
            cache.Append(tokens.to(new Device(device)), tokens.to(new Device(device)));
            string first = directory.File($"{name}-1"), second = directory.File($"{name}-2");
            cache.Save(first, "model");
            restored.Load(first, "model");
            restored.Save(second, "model");
            return File.ReadAllBytes(second);
        }

        MustafarCache Make() => new(
            1, s_shape, ScalarType.Float16, new Device(device), new MustafarOptions { LocalWindow = 32, GroupSize = 32, SinkTokens = sinks })
        {
            ConvertsPages = convert,
        };
    }

    [Test]
    public void RotaryTablesAreTheSame()
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor tokens = ones([1, 1, 5, HeadDim], device: new Device(device));
        Tensor expected = Run();
        set_default_device(new Device(Elsewhere));
        Tensor actual = Run();
        set_default_device(CPU);
        Compare.Same(actual, expected, Elsewhere);

        Tensor Run()
        {
            using RotaryEmbedding rotary = new(new RotaryOptions { HeadDim = HeadDim });
            return rotary.Apply(tokens, tokens, [7]).Query.cpu();
        }
    }
}
