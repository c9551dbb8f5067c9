using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>The benchmarks' data.</summary>
internal static class Data
{
    /// <summary>Normally distributed numbers, the same in each run.</summary>
    internal static (Tensor Query, Tensor Keys, Tensor Values) Random(Settings settings, Shape shape, ScalarType dtype, int queries = 1)
    {
        manual_seed(1);
        Tensor New(int heads, int tokens) => randn([shape.Batch, heads, tokens, settings.HeadDim], device: settings.Device).to(dtype);
        return (New(shape.NumHeads, queries), New(shape.NumKvHeads, shape.Tokens), New(shape.NumKvHeads, shape.Tokens));
    }

    /// <summary>A cache that holds given tokens.</summary>
    internal static MustafarCache Filled(Tensor keys, Tensor values, MustafarOptions options)
    {
        MustafarCache cache = Empty(keys, options);
        cache.Append(keys, values);
        return cache;
    }

    /// <summary>An empty cache for such tokens.</summary>
    internal static MustafarCache Empty(Tensor keys, MustafarOptions options) =>
        new((int)keys.shape[0], new() { NumKvHeads = (int)keys.shape[1], HeadDim = (int)keys.shape[3] }, keys.dtype, keys.device, options);

    /// <summary>The bytes a step must read: the compressed pages, and the dense tokens as far as the window is filled.</summary>
    internal static double BytesRead(MustafarCache cache)
    {
        double dense = cache.Lengths.Zip(cache.CompressedLengths, (length, compressed) => length - compressed).Sum();
        return cache.Memory.CompressedBytes + (2 * dense * cache.NumKvHeads * cache.HeadDim * (cache.DType == ScalarType.Float32 ? 4 : 2));
    }

    /// <summary>Options that keep a given number of channels in a given number of bits; 4-bit keys have channel scales.</summary>
    internal static MustafarOptions Options(Kept keep, int headDim) => new()
    {
        KeySparsity = (headDim - keep.Channels) / (double)headDim,
        ValueSparsity = (headDim - keep.Channels) / (double)headDim,
        KeptMultiple = 1,
        BalancedKeys = keep.Balanced,
        BalancedValues = keep.Balanced,
        KeyBits = keep.Bits,
        ValueBits = keep.Bits,
    };
}
