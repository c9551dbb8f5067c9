using System.Numerics;
using System.Runtime.InteropServices;
using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Checks for NaN and infinity.</summary>
internal static unsafe class FiniteCheck
{
    /// <summary>Whether no element of a Float32, Float16 or BFloat16 tensor on the CPU is infinite or NaN.</summary>
    /// <remarks>Contiguous rows need no torch operation: the tokens of one step are few, and each operation costs microseconds.</remarks>
    internal static bool IsFinite(Tensor tensor)
    {
        bool contiguous = tensor.is_contiguous();
        if (!contiguous && (tensor.dim() != 4 || tensor.stride(3) != 1))
        {
            using DisposeScope scope = NewDisposeScope();
            return tensor.isfinite().all().item<bool>();
        }

        int width = TensorAccess.ElementBytes(tensor.dtype);
        byte* data = (byte*)TensorAccess.Pointer(tensor);
        bool finite = contiguous ? IsFinite(data, tensor.numel(), tensor.dtype) : RowsAreFinite();
        GC.KeepAlive(tensor);
        return finite;

        bool RowsAreFinite()
        {
            long[] shape = tensor.Sizes(), strides = tensor.Strides();
            for (long row = 0; row < shape[0] * shape[1] * shape[2]; row++)
            {
                (long head, long token) = Math.DivRem(row, shape[2]);
                (long batch, head) = Math.DivRem(head, shape[1]);
                if (!IsFinite(data + (width * ((batch * strides[0]) + (head * strides[1]) + (token * strides[2]))), shape[3], tensor.dtype))
                {
                    return false;
                }
            }

            return true;
        }
    }

    // Neither infinity nor NaN: not all exponent bits are set.
    private static bool IsFinite(byte* data, long count, ScalarType dtype) => dtype switch
    {
        ScalarType.Float32 => NoneHasAll(data, count, 0x7f800000u),
        ScalarType.Float16 => NoneHasAll(data, count, (ushort)0x7c00),
        _ => NoneHasAll(data, count, (ushort)0x7f80),
    };

    private static bool NoneHasAll<T>(byte* data, long count, T bits)
        where T : unmanaged, IBinaryInteger<T>
    {
        const int piece = 1 << 20; // spans are shorter than tensors may be
        Vector<T> all = new(bits);
        for (long first = 0; first < count; first += piece)
        {
            ReadOnlySpan<T> elements = new((T*)data + first, (int)Math.Min(piece, count - first));
            ReadOnlySpan<Vector<T>> vectors = MemoryMarshal.Cast<T, Vector<T>>(elements);
            foreach (Vector<T> vector in vectors)
            {
                if (Vector.EqualsAny(vector & all, all))
                {
                    return false;
                }
            }

            foreach (T element in elements[(vectors.Length * Vector<T>.Count)..])
            {
                if ((element & bits) == bits)
                {
                    return false;
                }
            }
        }

        return true;
    }
}
