using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Sequences;

/// <summary>
/// A random run of a whole model's cache beside caches of one sequence and one layer each, which take the same tokens. All that the
/// seed does not fix is written to <see cref="Log"/>.
/// </summary>
internal sealed class SequenceRun : IDisposable
{
    private const int NumHeads = 4;
    private const int NumKvHeads = 2;
    private const int MostSequences = 5;

    private static readonly int[] s_blocks = [1, 1, 1, 2, 5, 8, 9, 33, 70, 150];

    private readonly Random _random;
    private readonly MustafarOptions[] _layers;
    private readonly KeyValueShape _shape;
    private readonly ScalarType _dtype;
    private readonly string _device;
    private readonly bool _dense;
    private readonly ModelKeyValueCache _cache;
    private readonly SortedDictionary<int, KeyValueCache[]> _alone = [];
    private readonly Dictionary<int, int> _longest = []; // what each sequence has been

    internal SequenceRun(int seed, string device, bool dense)
    {
        _dense = dense;
        _random = new Random(seed);
        _device = device;
        manual_seed(seed);
        _shape = new() { NumKvHeads = NumKvHeads, HeadDim = Any(64, 80, 128) };
        bool integers = !dense && Any(true, false);
        _dtype = !integers || device == "cpu" ? ScalarType.Float32 : Any(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16);
        MustafarOptions common = new()
        {
            GroupSize = Any(32, 64), LocalWindow = Any(0, 16, 33), SinkTokens = Any(0, 0, 3),
        };
        _layers = [.. Enumerable.Range(0, Any(1, 2, 3)).Select(_ => common with
        {
            KeySparsity = Any(0, 0.5, 0.65),
            ValueSparsity = Any(0, 0.5, 0.65),
            BalancedKeys = _shape.HeadDim != 80 && Any(true, false, false),
            BalancedValues = _shape.HeadDim != 80 && Any(true, false, false),
            KeyBits = integers ? Any(16, 8, 4) : 16,
            ValueBits = integers ? Any(16, 8, 4) : 16,
            SlidingWindow = Any<int?>(null, 20, 100),
        })];
        CacheLimits limits = Any(
            new CacheLimits(),
            new CacheLimits { MaxSequences = MostSequences, MaxLength = 8_000 },
            new CacheLimits { MaxSequences = MostSequences, BudgetTokens = 30_000 });
        _cache = dense
            ? new DenseModelCache([.. _layers.Select(layer => layer.SlidingWindow)], _shape, _dtype, new torch.Device(device), limits)
            : new MustafarModelCache(_layers, _shape, _dtype, new torch.Device(device), limits);
        Log.Add($"seed {seed}: head_dim {_shape.HeadDim}, {_dtype}, {limits}, {string.Join("; ", (object[])_layers)}");
    }

    /// <summary>What was done so far.</summary>
    internal List<string> Log { get; } = [];

    private bool HasWindow => _layers.Any(layer => layer.SlidingWindow is not null);

    /// <summary>Does something, and compares.</summary>
    internal void Advance()
    {
        using DisposeScope scope = NewDisposeScope();
        int choice = _alone.Count == 0 ? 0 : _random.Next(12);
        switch (choice)
        {
            case 0 when _alone.Count < MostSequences:
                Add();
                break;
            case 1:
                Remove();
                break;
            case 2 when _alone.Count < MostSequences:
                Fork();
                break;
            case 3 or 4:
                Truncate();
                break;
            default:
                Step(isCommitted: choice > 5);
                break;
        }

        Assert.That(_cache.Sequences, Is.EqualTo(_alone.Keys));
        foreach ((int sequence, KeyValueCache[] alone) in _alone)
        {
            Assert.That(_cache.LengthOf(sequence), Is.EqualTo(alone[0].Length));
            _longest[sequence] = Math.Max(_longest.GetValueOrDefault(sequence), alone[0].Length);
            Assert.That(_cache.PositionOf(sequence), Is.EqualTo(alone[0].Length));
            if (_cache is MustafarModelCache cache && !HasWindow)
            {
                Assert.That(cache.CompressedLengthOf(sequence), Is.EqualTo(((MustafarCache)alone[0]).CompressedLengths[0]));
            }
        }
    }

    public void Dispose()
    {
        _cache.Dispose();
        foreach (KeyValueCache alone in _alone.Values.SelectMany(layers => layers))
        {
            alone.Dispose();
        }
    }

    private void Add()
    {
        int sequence = _cache.AddSequence();
        Log.Add($"add {sequence}");
        _alone.Add(sequence, [.. _layers.Select(Alone)]);
    }

    private KeyValueCache Alone(MustafarOptions layer) => _dense
        ? new DenseCache(1, _shape, _dtype, new torch.Device(_device), slidingWindow: layer.SlidingWindow)
        : new MustafarCache(1, _shape, _dtype, new torch.Device(_device), layer);

    private void Remove()
    {
        int sequence = AnySequence();
        Log.Add($"remove {sequence}");
        _cache.RemoveSequence(sequence);
        Array.ForEach(_alone[sequence], cache => cache.Dispose());
        _alone.Remove(sequence);
        _longest.Remove(sequence);
    }

    private void Fork()
    {
        int parent = AnySequence();
        int sequence = _cache.Fork(parent);
        Log.Add($"fork {parent} to {sequence}");
        _alone.Add(sequence, [.. _alone[parent].Select(cache => cache.Fork([0]))]);
        _longest[sequence] = _longest[parent];
    }

    // No further than any of the caches can, whatever fell out of its window.
    private void Truncate()
    {
        int sequence = AnySequence(), length = _cache.LengthOf(sequence);
        int least = HasWindow ? Math.Clamp(_longest[sequence] - _layers[0].GroupSize, 0, length) : 0;
        int shorter = Any(true, false, false) ? 0 : _random.Next(least, length + 1);
        Log.Add($"truncate {sequence} from {length} to {shorter}");
        _cache.Truncate(sequence, shorter);
        Array.ForEach(_alone[sequence], cache => cache.Truncate(shorter));
    }

    private void Step(bool isCommitted)
    {
        int[] sequences = [.. _alone.Keys];
        _random.Shuffle(sequences);
        sequences = sequences[..(1 + _random.Next(sequences.Length))];
        int tokens = s_blocks[_random.Next(s_blocks.Length)];
        int[] counts = Any(true, false) ? [] : [.. sequences.Select(_ => _random.Next(tokens + 1))];
        int layers = isCommitted ? _layers.Length : _random.Next(_layers.Length + 1);
        Log.Add($"step of [{string.Join(", ", sequences)}], {tokens} tokens, counts [{string.Join(", ", counts)}], {(isCommitted ? "committed" : $"given up after {layers} layers")}");
        double tolerance = Compare.AttentionTolerance(_dtype);
        using CacheStep step = _cache.BeginStep(sequences, tokens, counts);
        Assert.That(step.Positions, Is.EqualTo(sequences.Select(_cache.LengthOf)));
        for (int layer = 0; layer < layers; layer++)
        {
            (Tensor query, Tensor keys, Tensor values) = (Rows(NumHeads), Rows(NumKvHeads), Rows(NumKvHeads));
            Tensor output = step.Attend(layer, query, keys, values);
            for (int b = 0; b < sequences.Length && isCommitted; b++)
            {
                int count = counts.Length == 0 ? tokens : counts[b];
                Tensor expected = _alone[sequences[b]][layer].Forward(Row(query), Row(keys), Row(values), counts: [count]);
                Compare.Close(Row(output), expected, tolerance, tolerance, $"layer {layer} of sequence {sequences[b]}");

                Tensor Row(Tensor rows) => rows.narrow(0, b, 1);
            }
        }

        if (isCommitted)
        {
            step.Commit();
        }

        Tensor Rows(int heads) => randn(sequences.Length, heads, tokens, _shape.HeadDim).to(_dtype).to(_device);
    }

    private int AnySequence() => _alone.Keys.ElementAt(_random.Next(_alone.Count));

    private T Any<T>(params ReadOnlySpan<T> values) => values[_random.Next(values.Length)];
}
