using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>A rotation of heads by their positions, whose arguments are known to be valid.</summary>
internal sealed unsafe class HeadRotation
{
    private readonly NativeContext _context;
    private readonly NativeRope _rope;
    private readonly object?[] _read; // kept alive while the rotation may be computed

    /// <summary>Checks the arguments of <see cref="MustafarOps.Rotate"/>, and makes the outputs if none are given.</summary>
    internal HeadRotation(RotaryHeads heads, Tensor positions, RotaryAngles angles, HeadNorms? norms, RotaryHeads? output)
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
        MustafarOps.ValidateOptional(value, nameof(heads.Value), query, keyShape);
        if (output is not null)
        {
            TensorAccess.Validate(output.Query, nameof(output.Query), query.dtype, query.device, shape);
            TensorAccess.Validate(output.Key, nameof(output.Key), query.dtype, query.device, keyShape);
            MustafarOps.ValidateOptional(output.Value, nameof(output.Value), query, keyShape);
            if (output.Value is null != value is null)
            {
                throw new ArgumentException("Expected an output for the values if and only if there are values.", nameof(output));
            }
        }

        CheckPositions(positions, query);
        int pairs = CheckAngles(angles, query);
        MustafarOps.ValidateOptional(norms?.Query, nameof(norms.Query), query, shape[3]);
        MustafarOps.ValidateOptional(norms?.Key, nameof(norms.Key), query, shape[3]);
        float epsilon = MustafarOps.Epsilon(norms?.Eps ?? 0);

        Output = output ?? new RotaryHeads(
            empty(shape, dtype: query.dtype, device: query.device), empty(keyShape, dtype: query.dtype, device: query.device),
            value is null ? null : empty(keyShape, dtype: query.dtype, device: query.device));
        Tensor? queryNorm = norms?.Query?.contiguous(), keyNorm = norms?.Key?.contiguous();
        query = TensorAccess.WithContiguousRows(query);
        key = TensorAccess.WithContiguousRows(key);
        value = value is null ? null : TensorAccess.WithContiguousRows(value);
        _context = TensorAccess.Context(query.device);
        _rope = new NativeRope
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
            QueryOutput = Written(Output.Query, nameof(output.Query)),
            KeyOutput = Written(Output.Key, nameof(output.Key)),
            ValueOutput = Output.Value is null ? default : Written(Output.Value, nameof(output.Value)),
            QueryNorm = MustafarOps.PointerOrNull(queryNorm),
            KeyNorm = MustafarOps.PointerOrNull(keyNorm),
            Positions = (int*)TensorAccess.Pointer(positions),
            InvFreq = (double*)MustafarOps.PointerOrNull(angles.Frequencies),
            Cosines = (float*)MustafarOps.PointerOrNull(angles.Cosines),
            Sines = (float*)MustafarOps.PointerOrNull(angles.Sines),
            TablePositions = angles.Cosines?.size(0) ?? 0,
            AttentionScaling = (float)angles.Scaling,
        };
        _read = [heads, query, key, value, queryNorm, keyNorm, positions, angles];
    }

    /// <summary>What the rotation writes.</summary>
    internal RotaryHeads Output { get; }

    /// <summary>Computes it.</summary>
    internal void Apply()
    {
        fixed (NativeContext* context = &_context)
        fixed (NativeRope* rope = &_rope)
        {
            NativeCall.Check(NativeMethods.Rotate(context, rope));
        }

        GC.KeepAlive(_read);
    }

    /// <summary>Appends tokens to a cache.</summary>
    /// <param name="rotation">Applied first, to what the <see cref="NativeAppend.NewKeys"/> of the call are then; none if null.</param>
    /// <param name="device">The device of the cache.</param>
    /// <param name="append">The call.</param>
    internal static void Append(HeadRotation? rotation, torch.Device device, NativeAppend* append)
    {
        if (rotation is not null)
        {
            rotation.ApplyAndAppend(append);
            return;
        }

        NativeContext context = TensorAccess.Context(device);
        NativeCall.Check(NativeMethods.AppendTokens(&context, append));
    }

    private void ApplyAndAppend(NativeAppend* append)
    {
        fixed (NativeContext* context = &_context)
        fixed (NativeRope* rope = &_rope)
        {
            NativeCall.Check(NativeMethods.RotateAppend(context, rope, append));
        }

        GC.KeepAlive(_read);
    }

    private static void CheckPositions(Tensor positions, Tensor query)
    {
        ArgumentNullException.ThrowIfNull(positions);
        (long batch, long tokens) = (query.size(0), query.size(2));
        if (!positions.is_contiguous())
        {
            throw new ArgumentException($"Expected contiguous positions [{batch}, {tokens}], but got other strides.", nameof(positions));
        }

        TensorAccess.Validate(positions, nameof(positions), ScalarType.Int32, query.device, batch, tokens);
    }

    // Returns the number of pairs.
    private static int CheckAngles(RotaryAngles angles, Tensor query)
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

    private static NativeDense Written(Tensor tensor, string name) => tensor.stride(3) == 1 || tensor.size(3) == 1
        ? TensorAccess.Dense(tensor)
        : throw new ArgumentException($"Expected rows of contiguous elements, but got strides [{string.Join(", ", tensor.stride())}].", name);
}
