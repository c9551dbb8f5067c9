using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Sizes and strides of all axes of a tensor.</summary>
/// <remarks>
/// TorchSharp's <c>shape</c> and <c>stride()</c> pass the native side a function that allocates, with a stub and finalizable objects for
/// each call: 1.7 µs on a Zen 5 core, while asking for one axis after another takes 0.1 µs.
/// </remarks>
internal static class TensorSizes
{
    /// <summary>The size of each axis.</summary>
    internal static long[] Sizes(this Tensor tensor)
    {
        long[] sizes = new long[tensor.dim()];
        for (int axis = 0; axis < sizes.Length; axis++)
        {
            sizes[axis] = tensor.size(axis);
        }

        return sizes;
    }

    /// <summary>Elements from one index of an axis to the next, for each axis.</summary>
    internal static long[] Strides(this Tensor tensor)
    {
        long[] strides = new long[tensor.dim()];
        for (int axis = 0; axis < strides.Length; axis++)
        {
            strides[axis] = tensor.stride(axis);
        }

        return strides;
    }
}
