using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>A cache that tells of each call.</summary>
internal sealed class WatchedCache(DenseCache inner, Action called)
    : KeyValueCache(inner.BatchSize, inner.KeyValueShape, inner.DType, inner.Device)
{
    public override IReadOnlyList<int> Lengths => inner.Lengths;

    public override KeyValueCacheMemory Memory => inner.Memory;

    public override Tensor Forward(
        Tensor query, Tensor keys, Tensor values, double? scale = null, ReadOnlySpan<int> counts = default)
    {
        called();
        return inner.Forward(query, keys, values, scale, counts);
    }

    public override void Truncate(int length) => inner.Truncate(length);

    public override void Clear() => inner.Clear();

    protected override void Dispose(bool disposing) => inner.Dispose();
}
