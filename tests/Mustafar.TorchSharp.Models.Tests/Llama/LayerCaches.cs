using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>A cache of one sequence made of any caches of single layers, so that a model can run on what is written without the library's
/// caches of whole models.</summary>
internal sealed class LayerCaches : ModelKeyValueCache
{
    private readonly KeyValueCache[] _layers;
    private int[] _counts = [];
    private int _length;

    private LayerCaches(KeyValueCache[] layers)
        : base(
            CacheShape.Checked(layers[0].KeyValueShape, layers[0].DType, layers[0].Device),
            layers.Length,
            new CacheLimits { MaxSequences = 1 }) => _layers = layers;

    public override KeyValueCacheMemory Memory => throw new NotSupportedException();

    public override CacheUsage Usage => throw new NotSupportedException();

    private protected override int Slots => 1;

    /// <summary>Takes over a cache for each layer.</summary>
    public static ModelCache Of(IEnumerable<KeyValueCache> layers) => new(new LayerCaches([.. layers]));

    private protected override void Grow(int slots) => throw new NotSupportedException();

    private protected override int LengthAt(int slot) => _length;

    private protected override int PositionAt(int slot) => _length;

    private protected override void Add(int slot) => _length = 0;

    private protected override void Remove(int slot) => Shorten(slot, 0, slot);

    private protected override void Continue(int slot, int parent) => throw new NotSupportedException();

    private protected override void Shorten(int slot, int length, int sequence)
    {
        _length = length;
        Rollback();
    }

    private protected override void Begin(ReadOnlySpan<int> slots, int tokens, ReadOnlySpan<int> counts) => _counts = counts.ToArray();

    private protected override Tensor Forward(
        int layer, Tensor query, Tensor keys, Tensor values, double? scale, HeadRotation? rotation)
    {
        rotation?.Apply();
        return _layers[layer].Forward(query, keys, values, scale, _counts);
    }

    private protected override Tensor Positions() => tensor(new[] { _length }, device: Device);

    private protected override StepLayout? Layout() => null;

    private protected override void Commit() => _length = _layers[0].Length;

    private protected override void Rollback()
    {
        foreach (KeyValueCache layer in _layers.Where(layer => layer.Length > _length))
        {
            layer.Truncate(_length);
        }
    }

    protected override void Dispose(bool disposing) => Array.ForEach(_layers, layer => layer.Dispose());
}
