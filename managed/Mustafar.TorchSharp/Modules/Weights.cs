using System.Runtime.InteropServices;
using Mustafar.Native;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Modules;

/// <summary>
/// Makes parameters and layers without initialising them, for a checkpoint to fill: drawing random numbers for weights that are
/// replaced immediately would take most of the time of loading a model.
/// </summary>
/// <remarks>Several threads may call all members.</remarks>
public static class Weights
{
    /// <summary>A parameter of undefined content that needs no gradient.</summary>
    /// <param name="shape">Its shape.</param>
    /// <param name="dtype">Its type.</param>
    /// <param name="device">Its device; the CPU if null.</param>
    public static Parameter Empty(ReadOnlySpan<long> shape, ScalarType dtype, torch.Device? device = null) =>
        new(empty(shape, dtype: dtype, device: device), requires_grad: false);

    /// <summary>A linear layer whose weight [outputs, inputs] and bias [outputs] have undefined content.</summary>
    /// <param name="inputs">Elements of its input.</param>
    /// <param name="outputs">Elements of its output.</param>
    /// <param name="bias">Whether it has a bias.</param>
    /// <param name="dtype">Type of the weights.</param>
    /// <param name="device">Device of the weights; the CPU if null.</param>
    public static Linear Linear(long inputs, long outputs, bool bias, ScalarType dtype, torch.Device? device = null)
    {
        return Linear(inputs, outputs, Empty([outputs, inputs], dtype, device), bias ? Empty([outputs], dtype, device) : null);
    }

    /// <summary>Linear layers over one input, whose weights and biases, of undefined content, are adjacent in memory: one product computes
    /// the outputs of all.</summary>
    /// <param name="inputs">Elements of their input.</param>
    /// <param name="outputs">Elements of the output of each.</param>
    /// <param name="bias">Whether they have biases.</param>
    /// <param name="dtype">Type of the weights.</param>
    /// <param name="device">Device of the weights; the CPU if null.</param>
    /// <seealso cref="Joint"/>
    public static Linear[] Linears(long inputs, ReadOnlySpan<long> outputs, bool bias, ScalarType dtype, torch.Device? device = null)
    {
        long total = 0;
        foreach (long count in outputs)
        {
            total += count;
        }

        using Tensor weight = empty([total, inputs], dtype: dtype, device: device);
        using Tensor? biases = bias ? empty([total], dtype: dtype, device: device) : null;
        Linear[] layers = new Linear[outputs.Length];
        long first = 0;
        for (int i = 0; i < layers.Length; i++)
        {
            layers[i] = Linear(inputs, outputs[i], Part(weight, first, outputs[i]), biases is null ? null : Part(biases, first, outputs[i]));
            first += outputs[i];
        }

        return layers;
    }

    /// <summary>Initialises a layer's weight and bias with numbers up to 1 / √inputs, like torch does for a new layer.</summary>
    internal static void Initialize(Linear layer)
    {
        using IDisposable noGrad = no_grad();
        double most = 1 / Math.Sqrt(layer.weight.size(1));
        _ = nn.init.uniform_(layer.weight, -most, most);
        if (layer.bias is Parameter bias)
        {
            _ = nn.init.uniform_(bias, -most, most);
        }
    }

    /// <summary>The tensor that contains others as parts, if they are adjacent in memory, as those of <see cref="Linears"/> are until they
    /// are converted or replaced.</summary>
    /// <param name="parts">Contiguous tensors of one type that may differ only in the size of the first axis.</param>
    /// <returns>A view of all of them, in the current dispose scope; null if they are not adjacent.</returns>
    public static unsafe Tensor? Joint(params ReadOnlySpan<Tensor> parts)
    {
        if (parts.IsEmpty)
        {
            return null;
        }

        long[] shape = parts[0].Sizes();
        byte* end = (byte*)TensorAccess.Pointer(parts[0]);
        long rows = 0;
        foreach (Tensor part in parts)
        {
            if (part.dtype != parts[0].dtype || part.device_type != parts[0].device_type || !part.is_contiguous()
                || !part.Sizes().AsSpan(1).SequenceEqual(shape.AsSpan(1)) || (byte*)TensorAccess.Pointer(part) != end)
            {
                return null;
            }

            end += part.numel() * part.element_size();
            rows += part.size(0);
        }

        try
        {
            shape[0] = rows;
            return parts[0].as_strided(shape, parts[0].Strides(), parts[0].storage_offset());
        }
        catch (ExternalException)
        {
            // Adjacent by chance: the memory of the first ends before that of the last.
            return null;
        }
    }

    private static Parameter Part(Tensor joint, long first, long count) => new(joint.narrow(0, first, count), requires_grad: false);

    private static Linear Linear(long inputs, long outputs, Parameter weight, Parameter? bias)
    {
        // On the meta device the constructor's initialisation touches no memory.
        Linear linear = nn.Linear(inputs, outputs, bias is not null, device: new torch.Device(DeviceType.META), dtype: weight.dtype);
        using Parameter? metaWeight = linear.weight;
        using Parameter? metaBias = linear.bias;
        linear.weight = weight;
        if (bias is not null)
        {
            linear.bias = bias;
        }

        return linear;
    }
}
