using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Makes parameters and layers without initialising them, for a checkpoint to fill: drawing random numbers for weights that are
/// replaced at once would take most of the time of loading a model.
/// </summary>
/// <remarks>All members are safe from several threads.</remarks>
public static class Weights
{
    /// <summary>A parameter of undefined content that takes no gradient.</summary>
    /// <param name="shape">Its shape.</param>
    /// <param name="dtype">Its type.</param>
    /// <param name="device">Its device; the CPU if null.</param>
    public static Parameter Empty(ReadOnlySpan<long> shape, ScalarType dtype, Device? device = null) =>
        new(empty(shape, dtype: dtype, device: device), requires_grad: false);

    /// <summary>A linear layer whose weight [outputs, inputs] and bias [outputs] have undefined content.</summary>
    /// <param name="inputs">Elements of its input.</param>
    /// <param name="outputs">Elements of its output.</param>
    /// <param name="bias">Whether it has a bias.</param>
    /// <param name="dtype">Type of the weights.</param>
    /// <param name="device">Device of the weights; the CPU if null.</param>
    public static Linear Linear(long inputs, long outputs, bool bias, ScalarType dtype, Device? device = null)
    {
        // On the meta device the constructor's initialisation touches no memory.
        Linear linear = nn.Linear(inputs, outputs, bias, device: new Device(DeviceType.META), dtype: dtype);
        using Parameter? metaWeight = linear.weight;
        using Parameter? metaBias = linear.bias;
        linear.weight = Empty([outputs, inputs], dtype, device);
        if (bias)
        {
            linear.bias = Empty([outputs], dtype, device);
        }

        return linear;
    }
}
