using System.Reflection;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// The implementation of a linear layer of Microsoft.ML.GenAI (<c>GenAILinear</c>, <c>QuantizedLinear</c>), which converts its weights to
/// Float32 at every call: this one multiplies in the data type of the weights.
/// </summary>
internal sealed class LinearLayer(nn.Module original, MustafarAttachment attachment) : ModuleReplacement(original)
{
    private static readonly string[] Names = ["GenAILinear", "QuantizedLinear"];

    /// <summary>Whether a module is such a layer, by the names of its class and members.</summary>
    internal static bool Matches(nn.Module candidate)
    {
        Type type = candidate.GetType();
        return Names.Contains(type.Name)
            && Reflected.TypeOf(type, "weight") == typeof(Tensor)
            && Reflected.ForwardParameters(candidate) is [ParameterInfo input]
            && input.ParameterType == typeof(Tensor);
    }

    /// <summary>The weight [outputs, inputs]; null if it is quantised, since the layer has other buffers in its place then.</summary>
    internal static Tensor? WeightOf(nn.Module linear) =>
        Reflected.Get(linear, "weight") is Tensor { IsInvalid: false } weight && weight.is_floating_point() ? weight : null;

    /// <summary>The bias [outputs]; null if there is none.</summary>
    internal static Tensor? BiasOf(nn.Module linear) => Reflected.Get(linear, "bias") as Tensor;

    internal override object? Forward(IReplacedModule module, object?[] arguments)
    {
        if (!attachment.TryEnter())
        {
            return module.CallOriginal(arguments);
        }

        try
        {
            return arguments[0] is Tensor input && WeightOf((nn.Module)module) is Tensor weight
                ? Product(input, weight, BiasOf((nn.Module)module))
                : module.CallOriginal(arguments);
        }
        finally
        {
            attachment.Leave();
        }
    }

    private static Tensor Product(Tensor input, Tensor weight, Tensor? bias)
    {
        using DisposeScope scope = NewDisposeScope();
        return nn.functional.linear(input.to(weight.dtype), weight, bias?.to(weight.dtype)).to(input.dtype).MoveToOuterDisposeScope();
    }
}
