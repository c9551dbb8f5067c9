using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache;

/// <summary>A step from heads whose positions are not encoded yet gives the bits of the rotation followed by the step.</summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
internal sealed class RotatedStepTests(string device)
{
    private const int Heads = 6, KvHeads = 2, Batch = 3;

    private static readonly MustafarOptions s_small = new() { LocalWindow = 16, GroupSize = 32 };

    private static readonly Dictionary<string, MustafarOptions?> s_options = new()
    {
        ["dense"] = null,
        ["pruned"] = s_small,
        ["no window"] = s_small with { LocalWindow = 0 },
        ["4 bits, channel scales"] = MustafarPresets.FourBits with { LocalWindow = 0, GroupSize = 32 },
        ["sinks"] = s_small with { SinkTokens = 5 },
        ["output-aware"] = s_small with { KeySelection = KeySelection.OutputAware, ValueSelection = ValueSelection.OutputAware },
        ["H2O"] = s_small with { Eviction = TokenEviction.HeavyHitters(64) },
    };

    private static IEnumerable<string> Options => s_options.Keys;

    [TestCaseSource(nameof(Options))]
    public void Equals_rotation_and_step(string name)
    {
        foreach ((ScalarType dtype, int headDim, int rotaryDim, bool tables, bool normed) in new[]
        {
            (ScalarType.Float32, 64, 64, false, true), (ScalarType.BFloat16, 128, 128, false, false), (ScalarType.Float16, 128, 64, true, true),
            (ScalarType.BFloat16, 80, 32, true, false),
        })
        {
            Case(s_options[name], dtype, headDim, rotaryDim, tables, normed, $"{name}, {dtype} {headDim} {rotaryDim}");
        }
    }

    [Test]
    public void Bad_heads_change_nothing()
    {
        using var scope = NewDisposeScope();
        using MustafarModelCache cache = New(s_small, ScalarType.Float32, 64);
        RotaryAngles angles = Angles(64, tables: false);
        int sequence = cache.AddSequence();
        using (CacheStep step = cache.BeginStep([sequence], 1))
        {
            RotaryHeads heads = new(Random(Heads), Random(KvHeads), Random(KvHeads));
            Assert.That(() => step.Attend(0, null!, angles), Throws.ArgumentNullException);
            Assert.That(() => step.Attend(0, heads, null!), Throws.ArgumentNullException);
            Assert.That(() => step.Attend(0, heads with { Value = null }, angles), Throws.ArgumentException.With.Message.Contains("values"));
            Assert.That(() => step.Attend(0, heads with { Key = Random(3) }, angles), Throws.ArgumentException);
            Assert.That(() => step.Attend(0, heads with { Query = heads.Query.half() }, angles), Throws.ArgumentException);
            Assert.That(() => step.Attend(0, heads with { Value = Random(3) }, angles), Throws.ArgumentException);
            Assert.That(() => step.Attend(0, heads, Angles(66, tables: false)), Throws.ArgumentException.With.Property("ParamName").EqualTo("angles"));
            _ = step.Attend(0, heads, angles);
            Assert.That(() => step.Attend(0, heads, angles), Throws.InvalidOperationException);
            step.Commit();
        }

        Assert.That(cache.LengthOf(sequence), Is.EqualTo(1));

        Tensor Random(int heads) => randn(1, heads, 1, 64, device: device);
    }

    // Prompts of several lengths, then single tokens past some compressions, with rows that get none.
    private void Case(MustafarOptions? options, ScalarType dtype, int headDim, int rotaryDim, bool tables, bool normed, string what)
    {
        using var scope = NewDisposeScope();
        manual_seed(headDim);
        using ModelKeyValueCache fused = NewCache(options, dtype, headDim), plain = NewCache(options, dtype, headDim);
        RotaryAngles angles = Angles(rotaryDim, tables);
        HeadNorms? norms = normed ? new HeadNorms(Weight(), Weight(), 1e-6) : null;
        int[][] sequences = [.. new[] { fused, plain }.Select(cache => Enumerable.Range(0, Batch).Select(_ => cache.AddSequence()).ToArray())];
        int steps = device == "cpu" ? 60 : 110; // the CPU rotates and appends one after the other
        for (int i = 0; i < steps; i++)
        {
            using var inner = NewDisposeScope();
            int tokens = i == 0 ? 43 : i % 37 == 0 ? 3 : 1;
            int[] counts = [tokens, i % 5 == 4 ? 0 : tokens, tokens == 1 ? 1 : tokens - 2];
            RotaryHeads heads = Split(randn(Batch, tokens, Heads + (2 * KvHeads), headDim).to(dtype).to(device).transpose(1, 2));
            using CacheStep first = fused.BeginStep(sequences[0], tokens, counts), second = plain.BeginStep(sequences[1], tokens, counts);
            RotaryHeads rotated = MustafarOps.Rotate(heads with { Value = null }, second.DevicePositions, angles, norms);
            Tensor expected = second.Attend(0, rotated.Query, rotated.Key, heads.Value!, 0.2);
            Tensor output = first.Attend(0, heads, angles, norms, 0.2);
            first.Commit();
            second.Commit();
            Compare.Same(heads.Query, rotated.Query.cpu(), $"{what}: queries of step {i}");
            Compare.Same(output, expected.cpu(), $"{what}: step {i}");
        }

        Tensor Weight() => randn(headDim).to(dtype).to(device);
    }

    private static RotaryHeads Split(Tensor all) =>
        new(all.narrow(1, 0, Heads), all.narrow(1, Heads, KvHeads), all.narrow(1, Heads + KvHeads, KvHeads));

    private ModelKeyValueCache NewCache(MustafarOptions? options, ScalarType dtype, int headDim) => options is null
        ? new DenseModelCache(1, new() { NumKvHeads = KvHeads, HeadDim = headDim }, dtype, torch.device(device))
        : New(options, dtype, headDim);

    private MustafarModelCache New(MustafarOptions options, ScalarType dtype, int headDim) =>
        new(1, new() { NumKvHeads = KvHeads, HeadDim = headDim }, dtype, torch.device(device), options);

    private RotaryAngles Angles(int rotaryDim, bool tables)
    {
        Tensor frequencies = pow(tensor(10_000.0), arange(rotaryDim / 2, dtype: ScalarType.Float64) * (-2.0 / rotaryDim)).to(device);
        Tensor all = outer(arange(300, dtype: ScalarType.Float64, device: device), frequencies);
        return tables
            ? RotaryAngles.FromTables(all.cos().to(ScalarType.Float32), all.sin().to(ScalarType.Float32))
            : RotaryAngles.PerPosition(frequencies);
    }
}
