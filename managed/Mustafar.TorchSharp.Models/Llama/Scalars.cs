using TorchSharp;

namespace Mustafar.Models.Llama;

/// <summary>
/// Numbers as arguments of operators. TorchSharp makes a new one for each, for the factor of <c>a + b</c> too, and doesn't hold it during
/// the native call, so that a collection that another thread starts can free it under the operator. One that lives as long as the program
/// is safe.
/// </summary>
internal static class Scalars
{
    internal static readonly Scalar One = 1;
    internal static readonly Scalar NegativeInfinity = double.NegativeInfinity;
}
