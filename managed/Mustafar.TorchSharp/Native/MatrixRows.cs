using static TorchSharp.torch;

namespace Mustafar.Native;

/// <summary>Tensors [.., width] as the native library sees them: rows a constant distance apart, elements of a row side by side.</summary>
internal static unsafe class MatrixRows
{
    /// <summary>The number of rows of a tensor [.., width].</summary>
    internal static long Count(Tensor tensor)
    {
        long[] shape = tensor.Sizes();
        long rows = 1;
        for (int d = 0; d < shape.Length - 1; d++)
        {
            rows *= shape[d];
        }

        return rows;
    }

    /// <summary>A tensor that is read. If its rows don't fit, it is replaced by a copy in the current dispose scope.</summary>
    internal static NativeRows Read(ref Tensor tensor)
    {
        if (!TryStride(tensor, out long stride))
        {
            tensor = tensor.contiguous();
            stride = tensor.size(-1);
        }

        return new NativeRows { Data = TensorAccess.Pointer(tensor), RowStride = stride };
    }

    /// <summary>A tensor that is written, or that a kernel reads before a copy of it would be ready.</summary>
    /// <exception cref="ArgumentException">Its rows don't fit.</exception>
    internal static NativeRows AsItIs(Tensor tensor, string name) => TryStride(tensor, out long stride)
        ? new NativeRows { Data = TensorAccess.Pointer(tensor), RowStride = stride }
        : throw new ArgumentException(
            $"Expected rows of contiguous elements a constant distance apart, but got strides [{string.Join(", ", tensor.stride())}] of shape [{string.Join(", ", tensor.shape)}].",
            name);

    /// <summary>Checks that written memory does not overlap memory that is read.</summary>
    internal static void Apart(Tensor written, string name, Tensor read, string other)
    {
        (nuint start, nuint end) = Range(written);
        (nuint otherStart, nuint otherEnd) = Range(read);
        if (start < otherEnd && otherStart < end)
        {
            throw new ArgumentException($"Expected memory separate from {other}, but it overlaps.", name);
        }
    }

    private static (nuint Start, nuint End) Range(Tensor tensor)
    {
        nuint start = (nuint)TensorAccess.Pointer(tensor);
        long[] shape = tensor.Sizes(), strides = tensor.Strides();
        long last = 0;
        for (int d = 0; d < shape.Length; d++)
        {
            if (shape[d] == 0)
            {
                return (start, start);
            }

            last += (shape[d] - 1) * strides[d];
        }

        return (start, start + (nuint)((last + 1) * TensorAccess.ElementBytes(tensor.dtype)));
    }

    private static bool TryStride(Tensor tensor, out long stride)
    {
        long[] shape = tensor.Sizes(), strides = tensor.Strides();
        stride = shape[^1];
        if (shape[^1] > 1 && strides[^1] != 1)
        {
            return false;
        }

        // Axes of several rows, inner ones first: each continues where the one inside it ends.
        long rows = 1;
        for (int d = shape.Length - 2; d >= 0; d--)
        {
            if (shape[d] == 1)
            {
                continue;
            }

            if (rows == 1)
            {
                stride = strides[d];
            }
            else if (strides[d] != rows * stride)
            {
                return false;
            }

            rows *= shape[d];
        }

        return rows <= 1 || stride >= shape[^1];
    }
}
