using System.Reflection;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// What stands behind a linear layer of Microsoft.ML.GenAI (<c>GenAILinear</c>, <c>QuantizedLinear</c>), which converts its weights to
/// Float32 at every call: it multiplies in the data type of the weights.
/// </summary>
internal sealed class LinearLayer(nn.Module original) : ModuleReplacement(original)
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

    /// <summary>The weight [outputs, inputs]; null if it is quantised, for then the layer has other buffers in its place.</summary>
    internal static Tensor? WeightOf(nn.Module linear) =>
        Reflected.Get(linear, "weight") is Tensor { IsInvalid: false } weight && weight.is_floating_point() ? weight : null;

    /// <summary>The bias [outputs]; null if there is none.</summary>
    internal static Tensor? BiasOf(nn.Module linear) => Reflected.Get(linear, "bias") as Tensor;

    internal override object? Forward(IReplacedModule module, object?[] arguments)
    {
        nn.Module linear = (nn.Module)module;
        if (arguments[0] is not Tensor input || WeightOf(linear) is not Tensor weight)
        {
            return module.CallOriginal(arguments);
        }

        using DisposeScope scope = NewDisposeScope();
        return nn.functional.linear(input.to(weight.dtype), weight, BiasOf(linear)?.to(weight.dtype))
            .to(input.dtype).MoveToOuterDisposeScope();
    }
}
