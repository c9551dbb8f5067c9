using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Numbers for torch's operators that live as long as the program.</summary>
/// <remarks>
/// TorchSharp makes a <see cref="Scalar"/> for each number that it is passed, and also for the factor of <c>a + b</c> and the steps of
/// <c>arange</c>. Nothing keeps that object alive during the native call, so a garbage collection on another thread can free the number
/// while the operator runs, which then fails or computes something else. So this library adds with <see cref="One"/> and counts with
/// <see cref="Range"/>.
/// </remarks>
internal static class Scalars
{
    internal static readonly Scalar Zero = 0;
    internal static readonly Scalar One = 1;
    internal static readonly Scalar PositiveInfinity = float.PositiveInfinity;
    internal static readonly Scalar NegativeInfinity = float.NegativeInfinity;
    internal static readonly Scalar NaN = float.NaN;

    /// <summary>The numbers first, first + 1, …: Int64 [count].</summary>
    internal static Tensor Range(long first, long count, Device device)
    {
        long[] numbers = new long[count];
        for (int i = 0; i < numbers.Length; i++)
        {
            numbers[i] = first + i;
        }

        return tensor(numbers, device: device);
    }

    /// <summary>A tensor times a number.</summary>
    internal static Tensor Times(this Tensor tensor, double factor)
    {
        Scalar scalar = factor;
        Tensor product = tensor.mul(scalar);
        GC.KeepAlive(scalar);
        return product;
    }
}
