using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Numbers as arguments of torch's operators that live as long as the program.</summary>
/// <remarks>
/// TorchSharp makes a <see cref="Scalar"/> for each number that it is given, and for the factor of <c>a + b</c> or the steps of
/// <c>arange</c> too. Nothing holds that object during the native call, so a collection that another thread starts frees the number
/// under the operator, which then fails or computes something else. Hence this library adds with <see cref="One"/>, and counts with
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
