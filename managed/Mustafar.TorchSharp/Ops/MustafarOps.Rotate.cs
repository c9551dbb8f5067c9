using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

public static unsafe partial class MustafarOps
{
    /// <summary>
    /// Rotary position embedding (RoFormer, arXiv 2104.09864) of queries and keys in the convention of Hugging Face checkpoints: channels i
    /// and i + rotary_dim / 2 are rotated together, channels from rotary_dim on are unchanged. Computed in float32 and rounded once; no
    /// gradient is recorded.
    /// </summary>
    /// <param name="heads">Float32, Float16 or BFloat16 heads of head_dim 2 to 512.</param>
    /// <param name="positions">Int32 [batch, tokens], contiguous, on the heads' device, at least 0; read when the call runs. A position
    /// outside the tables, or a negative one, is an error on the CPU and gives NaN on CUDA.</param>
    /// <param name="angles">The rotation angles; rotary_dim is twice their number of columns.</param>
    /// <param name="norms">RMSNorm of each head before the rotation; none if null.</param>
    /// <param name="output">Receives the results; each may be its own input. New tensors if null.</param>
    /// <returns>The output.</returns>
    /// <exception cref="ArgumentException">A type, device, layout or shape doesn't fit, or a position on the CPU.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><see cref="HeadNorms.Eps"/> is negative or not finite.</exception>
    public static RotaryHeads Rotate(
        RotaryHeads heads, Tensor positions, RotaryAngles angles, HeadNorms? norms = null, RotaryHeads? output = null)
    {
        ArgumentNullException.ThrowIfNull(heads);
        ArgumentNullException.ThrowIfNull(angles);
        (Tensor query, Tensor key, Tensor? value) = heads;
        TensorAccess.Validate(query, nameof(heads.Query));
        ArgumentNullException.ThrowIfNull(key, nameof(heads.Key));
        long[] shape = query.Sizes(), keyShape = [.. shape];
        long keyHeads = key.dim() == 4 ? key.size(1) : 0;
        if (keyHeads == 0 || shape[1] == 0 || shape[1] % keyHeads != 0)
        {
            throw new ArgumentException(
                $"Expected keys [{shape[0]}, a divisor of {shape[1]}, {shape[2]}, {shape[3]}], but got [{string.Join(", ", key.shape)}].",
                nameof(heads));
        }

        keyShape[1] = keyHeads;
        TensorAccess.Validate(key, nameof(heads.Key), query.dtype, query.device, keyShape);
        ValidateOptional(value, nameof(heads.Value), query, keyShape);
        if (output is not null)
        {
            TensorAccess.Validate(output.Query, nameof(output.Query), query.dtype, query.device, shape);
            TensorAccess.Validate(output.Key, nameof(output.Key), query.dtype, query.device, keyShape);
            ValidateOptional(output.Value, nameof(output.Value), query, keyShape);
            if (output.Value is null != value is null)
            {
                throw new ArgumentException("Expected an output for the values if and only if there are values.", nameof(output));
            }
        }

        Positions(positions, shape);
        TensorAccess.Validate(positions, nameof(positions), ScalarType.Int32, query.device, shape[0], shape[2]);
        int pairs = ValidateAngles(angles, query);
        ValidateOptional(norms?.Query, nameof(norms.Query), query, shape[3]);
        ValidateOptional(norms?.Key, nameof(norms.Key), query, shape[3]);
        float epsilon = Epsilon(norms?.Eps ?? 0);

        using DisposeScope scope = NewDisposeScope();
        RotaryHeads result = output ?? new RotaryHeads(
            empty(shape, dtype: query.dtype, device: query.device), empty(keyShape, dtype: query.dtype, device: query.device),
            value is null ? null : empty(keyShape, dtype: query.dtype, device: query.device));
        Tensor? queryNorm = norms?.Query?.contiguous(), keyNorm = norms?.Key?.contiguous();
        query = TensorAccess.WithContiguousRows(query);
        key = TensorAccess.WithContiguousRows(key);
        value = value is null ? null : TensorAccess.WithContiguousRows(value);
        NativeContext context = TensorAccess.Context(query.device);
        NativeRope rope = new()
        {
            DType = (int)TensorAccess.DTypeOf(query.dtype),
            Batch = checked((int)shape[0]),
            NumTokens = checked((int)shape[2]),
            NumHeads = checked((int)shape[1]),
            NumKvHeads = checked((int)keyHeads),
            HeadDim = checked((int)shape[3]),
            RotaryDim = 2 * pairs,
            Eps = epsilon,
            Query = TensorAccess.Dense(query),
            Key = TensorAccess.Dense(key),
            Value = value is null ? default : TensorAccess.Dense(value),
            QueryOutput = WrittenHeads(result.Query, nameof(output.Query)),
            KeyOutput = WrittenHeads(result.Key, nameof(output.Key)),
            ValueOutput = result.Value is null ? default : WrittenHeads(result.Value, nameof(output.Value)),
            QueryNorm = PointerOrNull(queryNorm),
            KeyNorm = PointerOrNull(keyNorm),
            Positions = (int*)TensorAccess.Pointer(positions),
            InvFreq = (double*)PointerOrNull(angles.Frequencies),
            Cosines = (float*)PointerOrNull(angles.Cosines),
            Sines = (float*)PointerOrNull(angles.Sines),
            TablePositions = angles.Cosines?.size(0) ?? 0,
            AttentionScaling = (float)angles.Scaling,
        };
        NativeCall.Check(NativeMethods.Rotate(&context, &rope));
        GC.KeepAlive(heads);
        GC.KeepAlive(query);
        GC.KeepAlive(key);
        GC.KeepAlive(value);
        GC.KeepAlive(queryNorm);
        GC.KeepAlive(keyNorm);
        GC.KeepAlive(positions);
        GC.KeepAlive(angles);
        if (output is null)
        {
            result.Query.MoveToOuterDisposeScope();
            result.Key.MoveToOuterDisposeScope();
            result.Value?.MoveToOuterDisposeScope();
        }

        return result;
    }

    private static void Positions(Tensor positions, long[] shape)
    {
        ArgumentNullException.ThrowIfNull(positions);
        if (!positions.is_contiguous())
        {
            throw new ArgumentException($"Expected contiguous positions [{shape[0]}, {shape[2]}], but got other strides.", nameof(positions));
        }
    }

    /// <summary>Checks the device and number of the angles; returns the number of pairs.</summary>
    private static int ValidateAngles(RotaryAngles angles, Tensor query)
    {
        Tensor any = angles.Frequencies ?? angles.Cosines!;
        long pairs = any.size(-1);
        if (2 * pairs > query.size(3))
        {
            throw new ArgumentException(
                $"Expected angles of at most {query.size(3) / 2} pairs of channels, half of head_dim, but got {pairs}.", nameof(angles));
        }

        foreach (Tensor? tensor in (ReadOnlySpan<Tensor?>)[angles.Frequencies, angles.Cosines, angles.Sines])
        {
            if (tensor is not null)
            {
                TensorAccess.Validate(tensor, nameof(angles), tensor.dtype, query.device, tensor.Sizes());
            }
        }

        return (int)pairs;
    }

    private static NativeDense WrittenHeads(Tensor tensor, string name) => tensor.stride(3) == 1 || tensor.size(3) == 1
        ? TensorAccess.Dense(tensor)
        : throw new ArgumentException($"Expected rows of contiguous elements, but got strides [{string.Join(", ", tensor.stride())}].", name);
}
