using Mustafar.Native;

namespace Mustafar;

/// <summary>How a layer's keys and values are compressed.</summary>
internal sealed unsafe class LayerFormat
{
    /// <summary>The format of a layer.</summary>
    /// <exception cref="NotSupportedException">The head_dim is not served, or not with balanced patterns.</exception>
    internal LayerFormat(CacheShape shape, MustafarOptions options)
    {
        Keys = Format(shape, options.Balanced, keys: true, options.KeysKept(shape.HeadDim));
        Values = Format(shape, options.Balanced, keys: false, options.ValuesKept(shape.HeadDim));
        PageBlocks = options.GroupSize / NativeConstants.BlockTokens;
        (KeyBytes, ValueBytes) = (PageBlocks * BlockBytes(Keys), PageBlocks * BlockBytes(Values));
    }

    internal NativeFormat Keys { get; }

    internal NativeFormat Values { get; }

    /// <summary>Blocks of one head in a page.</summary>
    internal int PageBlocks { get; }

    /// <summary>Bytes of one head's keys in a page.</summary>
    internal long KeyBytes { get; }

    /// <summary>Bytes of one head's values in a page.</summary>
    internal long ValueBytes { get; }

    /// <summary>Bytes of one head in a page: its keys, then its values.</summary>
    internal long HeadBytes => KeyBytes + ValueBytes;

    /// <summary>Bytes of one block.</summary>
    internal static long BlockBytes(NativeFormat format)
    {
        long bytes;
        NativeCall.Check(NativeMethods.BlockBytes(&format, &bytes));
        return bytes;
    }

    /// <summary>Format of blocks in a file.</summary>
    internal NativeFormat Plain(bool keys) => (keys ? Keys : Values) with { Order = (int)Order.Plain };

    private static NativeFormat Format(CacheShape shape, bool balanced, bool keys, int keep) => new()
    {
        HeadDim = shape.HeadDim,
        DType = (int)TensorAccess.DTypeOf(shape.DType),
        Pattern = (int)(!balanced ? SparsityPattern.Unstructured
            : keys ? SparsityPattern.BalancedKeys : SparsityPattern.BalancedValues),
        Layout = (int)Layout.Fixed,
        Order = (int)TensorAccess.OrderFor(shape.Device, keys),
        Keep = keep,
    };
}
