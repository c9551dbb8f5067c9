using Mustafar.Native;
using TorchSharp;

namespace Mustafar;

/// <summary>How a layer's keys and values are compressed.</summary>
internal sealed unsafe class LayerFormat
{
    /// <summary>The format of a layer.</summary>
    /// <exception cref="ArgumentException">The options contradict each other.</exception>
    /// <exception cref="NotSupportedException">The head_dim is not supported, or not with balanced patterns.</exception>
    internal LayerFormat(CacheShape shape, MustafarOptions options)
    {
        options.Check();
        options.CheckSelections(shape.HeadDim);
        options.CheckRotation(shape.HeadDim);
        Keys = Format(
            shape, keys: true, options.KeyBits, options.KeysKept(shape.HeadDim), PatternOf(options.KeySelection, options.BalancedKeys ? Pattern.BalancedKeys : Pattern.Unstructured));
        Values = Format(
            shape, keys: false, options.ValueBits, options.ValuesKept(shape.HeadDim), PatternOf(options.ValueSelection, options.BalancedValues ? Pattern.BalancedValues : Pattern.Unstructured));
        if (options.KeyRotation)
        {
            Keys = Keys with { Pattern = (int)Pattern.AllRotated };
        }

        PageBlocks = options.GroupSize / NativeConstants.BlockTokens;
        if (shape.Device.type != DeviceType.CPU && !IsServed(shape))
        {
            // Tensor cores read masks in neither order, and the portable kernel, which does, reads both sides in plain order.
            (Keys, Values) = (Keys with { Order = (int)Order.Plain }, Values with { Order = (int)Order.Plain });
        }

        (KeyBytes, ValueBytes) = (PageBlocks * BlockBytes(Keys), PageBlocks * BlockBytes(Values));
        KeyScaleBytes = options.KeyChannelScales ? (long)shape.NumKvHeads * shape.HeadDim * sizeof(float) : 0;
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

    /// <summary>Bytes of the channel scales of a sequence's keys; 0 if they have none.</summary>
    internal long KeyScaleBytes { get; }

    /// <summary>Bytes of what selections gather for a sequence.</summary>
    internal long StatisticsBytes(CacheShape shape, MustafarOptions options) =>
        ChannelStatistics.SlotBytes(options.KeySelection, shape, Keys.Keep) + ChannelStatistics.SlotBytes(options.ValueSelection, shape, Values.Keep);

    /// <summary>Bytes of one block.</summary>
    internal static long BlockBytes(NativeFormat format)
    {
        long bytes;
        NativeCall.Check(NativeMethods.BlockBytes(&format, &bytes));
        return bytes;
    }

    /// <summary>Format of blocks in a file of some version.</summary>
    internal NativeFormat OfFile(bool keys, int version)
    {
        NativeFormat own = keys ? Keys : Values;
        Pattern pattern = own.Keep < own.HeadDim || (Pattern)own.Pattern == Pattern.AllRotated ? (Pattern)own.Pattern
            : version == CacheFileFormat.FirstVersion ? Pattern.Unstructured : Pattern.All;
        return own with { Order = (int)Order.Plain, Pattern = (int)pattern };
    }

    /// <summary>Whether every channel is kept, without bitmaps.</summary>
    internal static bool KeepsAll(NativeFormat format) => (Pattern)format.Pattern is Pattern.All or Pattern.AllRotated;

    /// <summary>Whether values are integers.</summary>
    internal static bool HasIntegers(NativeFormat format) => format.ValueFormat != (int)ValueFormat.Native;

    /// <summary>Checks that the device supports attention over the format, before the first token comes.</summary>
    /// <exception cref="NotSupportedException">It does not.</exception>
    internal void CheckServed(CacheShape shape)
    {
        try
        {
            NativeCall.Check(QueryWorkspace(shape));
        }
        catch (NotSupportedException exception) when (shape.Device.type != DeviceType.CPU)
        {
            throw new NotSupportedException(
                $"There is no attention on {shape.Device} for {shape.DType} with keys of {Describe(Keys)} and values of {Describe(Values)}: {exception.Message}",
                exception);
        }

        static string Describe(NativeFormat format) =>
            $"{format.Keep} of {format.HeadDim} channels{(HasIntegers(format) ? $" in {(format.ValueFormat == (int)ValueFormat.Int8 ? 8 : 4)} bits" : "")}";
    }

    /// <summary>Whether a specialised kernel reads it, not the portable one.</summary>
    internal bool HasFastKernels(CacheShape shape) => shape.Device.type == DeviceType.CPU || Keys.Order != (int)Order.Plain;

    private bool IsServed(CacheShape shape)
    {
        int status = QueryWorkspace(shape);
        if (status == (int)Status.Unsupported)
        {
            return false;
        }

        NativeCall.Check(status);
        return true;
    }

    // The native checks of attention for the formats.
    private int QueryWorkspace(CacheShape shape)
    {
        NativeContext context = TensorAccess.Context(shape.Device);
        NativeAttention attention = new()
        {
            Batch = 1,
            NumSlots = 1,
            MaxTokens = PageBlocks * NativeConstants.BlockTokens,
            NumHeads = shape.NumKvHeads,
            NumKvHeads = shape.NumKvHeads,
            NumQueries = 1,
            Scale = 1,
            Keys = new NativeBlocks { Format = Keys, PageBlocks = PageBlocks },
            Values = new NativeBlocks { Format = Values, PageBlocks = PageBlocks },
        };
        long bytes;
        return NativeMethods.AttentionWorkspace(&context, &attention, &bytes);
    }

    private static Pattern PatternOf(ChannelSelection selection, Pattern otherwise) => selection.IsUneven ? Pattern.Mask : otherwise;

    private static NativeFormat Format(CacheShape shape, bool keys, int bits, int keep, Pattern pattern)
    {
        ValueFormat values = TensorAccess.ValueFormatOf(bits);
        if (keep == shape.HeadDim)
        {
            // On CUDA, unquantised blocks that keep all channels have bitmaps like those with any other number of channels.
            bool hasBitmaps = values == ValueFormat.Native && shape.Device.type != DeviceType.CPU;
            pattern = hasBitmaps ? Pattern.Unstructured : Pattern.All;
        }

        return new NativeFormat
        {
            HeadDim = shape.HeadDim,
            DType = (int)TensorAccess.DTypeOf(shape.DType),
            ValueFormat = (int)values,
            Pattern = (int)pattern,
            Layout = (int)Layout.Fixed,
            Order = (int)TensorAccess.OrderFor(shape.Device, keys),
            Keep = keep,
        };
    }
}
