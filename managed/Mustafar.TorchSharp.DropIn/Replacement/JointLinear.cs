using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// Linear layers over one input whose weights are views of one tensor and adjacent in memory, so that one product computes
/// all their outputs.
/// </summary>
/// <remarks>
/// The weights stay the same <see cref="Tensor"/> objects: loading into them in place affects the product. A conversion or a
/// quantisation replaces a layer's weight, which ends the joint product.
/// </remarks>
internal sealed class JointLinear : IDisposable
{
    private readonly nn.Module[] _layers;
    private readonly Tensor _weight;
    private readonly Tensor? _bias;

    private JointLinear(nn.Module[] layers)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        _layers = layers;
        _weight = Join(Weights(layers)).DetachFromDisposeScope();
        _bias = Biases(layers) is { Length: > 0 } biases ? Join(biases).DetachFromDisposeScope() : null;
    }

    /// <summary>Puts the weights of layers that run in the data type of their weights into one tensor.</summary>
    /// <returns>Null if the layers are of another kind, have weights of different types, devices or input sizes, or only some have a
    /// bias.</returns>
    internal static JointLinear? TryMake(params nn.Module?[] layers)
    {
        nn.Module[] all = [.. layers.OfType<nn.Module>().Where(layer => layer is IReplacedModule { Replacement: LinearLayer })];
        Tensor[] weights = Weights(all);
        if (weights.Length == 0 || weights.Length < layers.Length)
        {
            return null;
        }

        int biases = Biases(all).Length;
        bool fit = Array.TrueForAll(weights, weight => weight.dtype == weights[0].dtype && weight.device_type == weights[0].device_type
            && weight.device_index == weights[0].device_index && weight.Sizes() is [_, long inputs] && inputs == weights[0].size(-1));
        return fit && (biases == 0 || biases == all.Length) ? new JointLinear(all) : null;
    }

    /// <summary>The concatenated outputs of all layers [.., sum of their sizes]; null if a layer has another weight now.</summary>
    internal Tensor? Project(Tensor input) => Lies(Weights(_layers), _weight) && Lies(Biases(_layers), _bias)
        ? nn.functional.linear(input.to(_weight.dtype), _weight, _bias).to(input.dtype)
        : null;

    /// <summary>Gives each weight separate memory again.</summary>
    public void Dispose()
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        Separate(Weights(_layers), _weight);
        Separate(Biases(_layers), _bias);
        _weight.Dispose();
        _bias?.Dispose();
    }

    private static Tensor[] Weights(nn.Module[] layers) => [.. layers.Select(LinearLayer.WeightOf).OfType<Tensor>()];

    private static Tensor[] Biases(nn.Module[] layers) => [.. layers.Select(LinearLayer.BiasOf).OfType<Tensor>()];

    private static Tensor Join(Tensor[] parts)
    {
        Tensor joint = cat(parts, 0);
        long first = 0;
        foreach (Tensor part in parts)
        {
            SetMemory(part, joint.narrow(0, first, part.size(0)));
            first += part.size(0);
        }

        return joint;
    }

    private static void Separate(Tensor[] parts, Tensor? joint)
    {
        if (Lies(parts, joint))
        {
            foreach (Tensor part in parts)
            {
                SetMemory(part, part.clone());
            }
        }
    }

    // Its former memory is freed at the next collection at the earliest: a thread that runs the model's own attention may be reading it.
    private static void SetMemory(Tensor part, Tensor memory)
    {
        part.alias().DetachFromDisposeScope();
        part.set_(memory);
    }

    private static unsafe bool Lies(Tensor[] parts, Tensor? joint)
    {
        if (joint is null)
        {
            return parts.Length == 0;
        }

        byte* expected = (byte*)TensorAccess.Pointer(joint);
        long rows = 0;
        foreach (Tensor part in parts)
        {
            if (part.dtype != joint.dtype || (byte*)TensorAccess.Pointer(part) != expected)
            {
                return false;
            }

            expected += part.numel() * part.element_size();
            rows += part.size(0);
        }

        return rows == joint.size(0);
    }
}
