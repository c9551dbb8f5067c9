using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Mustafar's operations on tensors, independent of any cache.</summary>
/// <remarks>Several threads may call all members at once, even on the same tensors as long as nobody writes to them.</remarks>
/// <example>
/// <code>
/// Tensor keys = randn(1, 2, 1000, 64);
/// Tensor mask = MustafarOps.PruneMask(keys, kept: 20); // true at the 20 largest channels of each token
/// Tensor pruned = MustafarOps.Prune(keys, kept: 20); // the others are 0
/// Tensor twoOfFour = MustafarOps.Prune(keys, kept: 32, SparsityPattern.BalancedKeys);
/// </code>
/// </example>
public static unsafe partial class MustafarOps
{
    internal const int WordBits = 32;

    /// <summary>Selects each row's channels of largest magnitude, or of largest magnitude times importance. (Mustafar, arXiv 2505.22913:
    /// per-token magnitude pruning and, with an importance of Σ|q|, per-token output-aware pruning.)</summary>
    /// <param name="tensor">Float32, Float16 or BFloat16 [batch, heads, tokens, head_dim]; head_dim 64, 80, 96, 128 or 256.</param>
    /// <param name="kept">Number of channels to keep of each row, 1 to head_dim. Among equal magnitudes the lower channel is kept; NaN
    /// counts as larger than any number.</param>
    /// <param name="pattern">The rule; <paramref name="kept"/> is 5, 6, 7 or 8 sixteenths of head_dim for balanced patterns, which exist
    /// for head_dim 64, 128 and 256.</param>
    /// <param name="importance">Factors of each channel's magnitudes before they are compared, in single precision:
    /// Float32 [batch, heads, head_dim]; null for ones.</param>
    /// <returns>Bool of the same shape, true at <paramref name="kept"/> channels of each row (balanced values: on average, with tokens
    /// past the last one counting as zeros).</returns>
    /// <exception cref="ArgumentException">The tensor's type or shape doesn't fit.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="kept"/> is out of range.</exception>
    /// <exception cref="NotSupportedException">The head_dim, the device, or this <paramref name="kept"/> with the pattern is not
    /// supported.</exception>
    public static Tensor PruneMask(
        Tensor tensor, int kept, SparsityPattern pattern = SparsityPattern.Unstructured, Tensor? importance = null)
    {
        using DisposeScope scope = NewDisposeScope();
        return UnpackMask(PruneBitmap(tensor, kept, pattern, importance), tensor.size(3)).MoveToOuterDisposeScope();
    }

    /// <summary>The mask of <see cref="PruneMask"/> as bitmap words, Int32 [batch, heads, tokens, ⌈head_dim / 32⌉].</summary>
    internal static Tensor PruneBitmap(Tensor tensor, int kept, SparsityPattern pattern, Tensor? importance = null)
    {
        NativeFormat format = Format(tensor, nameof(tensor), kept, pattern);
        CheckImportance(tensor, importance, pattern);
        long[] shape = tensor.shape;
        long words = Words(shape[3]);
        using DisposeScope scope = NewDisposeScope();
        Tensor rows = TensorAccess.WithContiguousRows(tensor);
        importance = importance?.contiguous();
        Tensor bitmap = empty([shape[0], shape[1], shape[2], words], dtype: ScalarType.Int32, device: tensor.device);
        NativeContext context = TensorAccess.Context(tensor.device);
        NativeDense source = TensorAccess.Dense(rows);
        NativeCall.Check(NativeMethods.Prune(
            &context, &format, (int)shape[0], (int)shape[1], shape[2], &source, TensorAccess.Floats(importance),
            (uint*)TensorAccess.Pointer(bitmap)));
        GC.KeepAlive(rows);
        GC.KeepAlive(importance);
        return bitmap.MoveToOuterDisposeScope();
    }

    /// <summary>The tensor with all but the channels of <see cref="PruneMask"/> set to zero.</summary>
    /// <inheritdoc cref="PruneMask" path="/param"/>
    /// <inheritdoc cref="PruneMask" path="/exception"/>
    /// <returns>A dense tensor of the same type and shape.</returns>
    public static Tensor Prune(
        Tensor tensor, int kept, SparsityPattern pattern = SparsityPattern.Unstructured, Tensor? importance = null)
    {
        using Tensor mask = PruneMask(tensor, kept, pattern, importance);
        using Tensor zero = zeros(1, dtype: tensor.dtype, device: tensor.device);
        return where(mask, tensor, zero);
    }

    /// <summary>
    /// The channel scales of keys: each channel's largest magnitude over all tokens, relative to the mean of these. (docs/format.md)
    /// </summary>
    /// <param name="keys">Float32, Float16 or BFloat16 [batch, num_kv_heads, tokens, head_dim]; head_dim 64, 80, 96, 128 or 256.</param>
    /// <returns>Float32 [batch, num_kv_heads, head_dim], 2^-10 to 2^10; 1 for a channel that is zero in all tokens, or infinite or NaN in
    /// one.</returns>
    /// <exception cref="ArgumentException">The tensor's type or shape doesn't fit.</exception>
    /// <exception cref="NotSupportedException">The head_dim or the device is not supported.</exception>
    public static Tensor KeyChannelScales(Tensor keys)
    {
        TensorAccess.Validate(keys, nameof(keys));
        long[] shape = keys.shape;
        using DisposeScope scope = NewDisposeScope();
        Tensor rows = TensorAccess.WithContiguousRows(keys);
        Tensor scales = empty([shape[0], shape[1], shape[3]], dtype: ScalarType.Float32, device: keys.device);
        NativeContext context = TensorAccess.Context(keys.device);
        NativeDense source = TensorAccess.Dense(rows);
        NativeCall.Check(NativeMethods.KeyFactors(
            &context, (int)TensorAccess.DTypeOf(keys.dtype), checked((int)shape[3]), (int)shape[0], (int)shape[1], shape[2], &source,
            (float*)TensorAccess.Pointer(scales)));
        GC.KeepAlive(rows);
        return scales.MoveToOuterDisposeScope();
    }

    /// <summary>
    /// Attention over compressed keys and values: softmax(scale · Q Kᵀ) V in one pass, with f32 accumulation.
    /// </summary>
    /// <param name="query">[batch, num_heads, queries, head_dim]; head h reads KV head h / (num_heads / num_kv_heads). The queries are the
    /// last tokens: query i sees the tokens up to length − queries + i.</param>
    /// <param name="keys">Compressed keys [batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="values">Compressed values of the same shape.</param>
    /// <param name="scale">Factor of the scores; 1/√head_dim if null.</param>
    /// <param name="lengths">Number of valid tokens of each sequence, 0 to tokens; all if empty.</param>
    /// <returns>[batch, num_heads, queries, head_dim] in the type of the query; zero where a query sees no token.</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit.</exception>
    /// <exception cref="ObjectDisposedException">A compressed tensor was disposed.</exception>
    public static Tensor Attention(
        Tensor query, BitmapTensor keys, BitmapTensor values, double? scale = null, ReadOnlySpan<int> lengths = default)
    {
        ArgumentNullException.ThrowIfNull(query);
        ArgumentNullException.ThrowIfNull(keys);
        ArgumentNullException.ThrowIfNull(values);
        if (values.BatchSize != keys.BatchSize || values.NumKvHeads != keys.NumKvHeads || values.Tokens != keys.Tokens
            || values.HeadDim != keys.HeadDim || values.DType != keys.DType)
        {
            throw new ArgumentException(
                $"Expected values like the keys, {Describe(keys)}, but got {Describe(values)}.", nameof(values));
        }

        if (values.HasChannelScales)
        {
            throw new ArgumentException("Expected values without channel scales, which only keys have.", nameof(values));
        }

        long[] shape = query.shape;
        if (shape.Length != 4 || shape[1] == 0 || shape[1] % keys.NumKvHeads != 0)
        {
            throw new ArgumentException(
                $"Expected [{keys.BatchSize}, a multiple of {keys.NumKvHeads} heads, queries, {keys.HeadDim}], but got [{string.Join(", ", shape)}].",
                nameof(query));
        }

        TensorAccess.Validate(query, nameof(query), keys.DType, keys.Device, keys.BatchSize, shape[1], shape[2], keys.HeadDim);
        if (!lengths.IsEmpty && lengths.Length != keys.BatchSize)
        {
            throw new ArgumentException($"Expected one length for each of {keys.BatchSize} sequences, but got {lengths.Length}.", nameof(lengths));
        }

        using BackendArray<int> counts = new(keys.BatchSize, query.device);
        for (int b = 0; b < keys.BatchSize; b++)
        {
            int length = lengths.IsEmpty ? checked((int)keys.Tokens) : lengths[b];
            if (length < 0 || length > keys.Tokens)
            {
                throw new ArgumentOutOfRangeException(nameof(lengths), length, $"Expected 0 to {keys.Tokens} tokens for sequence {b}.");
            }

            counts.Span[b] = length;
        }

        using BitmapTensor.Use keysInUse = new(keys), valuesInUse = new(values);
        using DisposeScope scope = NewDisposeScope();
        counts.Upload();
        Tensor output = empty(shape, dtype: query.dtype, device: query.device);
        Tensor rows = TensorAccess.WithContiguousRows(query);
        NativeContext context = TensorAccess.Context(query.device);
        NativeAttention attention = new()
        {
            Batch = keys.BatchSize,
            NumSlots = keys.BatchSize,
            NumHeads = checked((int)shape[1]),
            NumKvHeads = keys.NumKvHeads,
            NumQueries = checked((int)shape[2]),
            MaxTokens = checked((int)keys.Tokens),
            Scale = (float)(scale ?? 1 / Math.Sqrt(keys.HeadDim)),
            Lengths = counts.Pointer,
            Compressed = counts.Pointer,
            Query = TensorAccess.Dense(rows),
            Output = TensorAccess.Dense(output),
            Keys = keys.Native,
            Values = values.Native,
            KeyFactors = keys.ChannelScales,
        };
        long bytes;
        NativeCall.Check(NativeMethods.AttentionWorkspace(&context, &attention, &bytes));
        Tensor workspace = TensorAccess.Workspace(bytes, query.device);
        attention.Workspace = TensorAccess.Pointer(workspace);
        attention.WorkspaceBytes = bytes;
        NativeCall.Check(NativeMethods.AttentionForward(&context, &attention));
        GC.KeepAlive(rows);
        GC.KeepAlive(workspace);
        GC.KeepAlive(counts);
        return output.MoveToOuterDisposeScope();
    }

    /// <summary>The format of a tensor to be compressed. Checks the tensor, and the kept channels unless null (a mask selects).</summary>
    internal static NativeFormat Format(
        Tensor tensor, string name, int? kept, SparsityPattern pattern = SparsityPattern.Unstructured, int bits = 16)
    {
        TensorAccess.Validate(tensor, name);
        long headDim = tensor.shape[3];
        if (kept is int channels && (channels < 1 || channels > headDim))
        {
            throw new ArgumentOutOfRangeException(nameof(kept), channels, $"Expected 1 to {headDim} channels, the head_dim of {name}.");
        }

        if (!Enum.IsDefined(pattern))
        {
            throw new ArgumentOutOfRangeException(nameof(pattern), pattern, "Expected a SparsityPattern.");
        }

        if (pattern == SparsityPattern.All && kept != headDim)
        {
            throw new ArgumentOutOfRangeException(
                nameof(kept), kept, $"Expected {headDim} channels, the head_dim of {name}, since the pattern keeps all.");
        }

        return new NativeFormat
        {
            HeadDim = (int)headDim,
            DType = (int)TensorAccess.DTypeOf(tensor.dtype),
            ValueFormat = (int)TensorAccess.ValueFormatOf(bits),
            Pattern = (int)pattern,
            Layout = (int)(kept is null ? Layout.Offsets : Layout.Fixed),
            Keep = kept ?? 0,
        };
    }

    /// <summary>A bool mask [batch, heads, tokens, head_dim] as bitmap words, Int32 [batch, heads, tokens, ⌈head_dim / 32⌉].</summary>
    internal static Tensor PackMask(Tensor mask)
    {
        using DisposeScope scope = NewDisposeScope();
        long[] shape = mask.shape;
        long words = Words(shape[3]);
        Tensor padded = zeros([shape[0], shape[1], shape[2], words * WordBits], dtype: ScalarType.Int64, device: mask.device);
        padded.narrow(3, 0, shape[3]).copy_(mask);
        Tensor weights = ones(1, dtype: ScalarType.Int64, device: mask.device)
            .bitwise_left_shift(Scalars.Range(0, WordBits, mask.device));
        return (padded.reshape(shape[0], shape[1], shape[2], words, WordBits) * weights).sum(-1).to(ScalarType.Int32).MoveToOuterDisposeScope();
    }

    /// <summary>The reverse of <see cref="PackMask"/>, in the current dispose scope.</summary>
    internal static Tensor UnpackMask(Tensor bitmap, long headDim)
    {
        long[] shape = bitmap.shape;
        Tensor bits = Scalars.Range(0, WordBits, bitmap.device).to(ScalarType.Int32);
        return bitmap.unsqueeze(-1).bitwise_right_shift(bits).bitwise_and(1).to(ScalarType.Bool)
            .reshape(shape[0], shape[1], shape[2], shape[3] * WordBits).narrow(3, 0, headDim);
    }

    /// <summary>Checks the importance of a tensor's channels, Float32 [batch, heads, head_dim].</summary>
    internal static void CheckImportance(Tensor tensor, Tensor? importance, SparsityPattern pattern)
    {
        if (importance is null)
        {
            return;
        }

        if (pattern == SparsityPattern.All)
        {
            throw new ArgumentException("Expected no importance with a pattern that keeps all channels.", nameof(importance));
        }

        long[] shape = tensor.shape;
        TensorAccess.Validate(importance, nameof(importance), ScalarType.Float32, tensor.device, shape[0], shape[1], shape[3]);
    }

    /// <summary>Number of words that hold one bit for each of some elements.</summary>
    internal static long Words(long elements) => (elements + WordBits - 1) / WordBits;

    private static string Describe(BitmapTensor tensor) =>
        $"{tensor.DType} [{tensor.BatchSize}, {tensor.NumKvHeads}, {tensor.Tokens}, {tensor.HeadDim}]";
}
