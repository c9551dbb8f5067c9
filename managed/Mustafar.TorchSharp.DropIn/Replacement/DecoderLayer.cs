using System.Diagnostics.CodeAnalysis;
using System.Reflection;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// The implementation of a decoder layer of Microsoft.ML.GenAI, which keeps all of its temporaries until it ends. Here what one of its
/// modules returns for a long prompt is freed once the next one has read it.
/// </summary>
/// <remarks>
/// The modules are called in this order: a norm, attention, a norm, the feed-forward module. Attention reads nothing but what the first norm
/// returned, and the feed-forward module what the second one returned. The second norm reads the sum of the layer's input and what attention
/// returned, which the layer has no more use for by then.
/// </remarks>
internal sealed class DecoderLayer(nn.Module original) : ModuleReplacement(original)
{
    private static readonly string[] Names = ["LlamaDecoderLayer", "MistralDecoderLayer", "Phi3DecoderLayer"];
    private static readonly string[] OfSingleTokens = ["input_layernorm", "post_attention_layernorm", "mlp"];

    // Of the layer that the thread runs; modules that are called without their layer free nothing.
    [ThreadStatic]
    private static bool t_isRunning;

    [ThreadStatic]
    private static Tensor? t_returned;

    /// <summary>Whether a module is such a layer, by the names of its class and members, and its class can be derived from.</summary>
    [RequiresDynamicCode("Asks whether a subclass can be emitted.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    internal static bool Matches(nn.Module candidate) =>
        Names.Contains(candidate.GetType().Name)
        && Reflected.Get(candidate, "self_attn") is nn.Module
        && Array.TrueForAll(OfSingleTokens, name => Reflected.Get(candidate, name) is nn.Module module && TokenPieces.Matches(module))
        && Reflected.ForwardParameters(candidate) is [ParameterInfo]
        && ReplacementType.WhyNot(candidate.GetType()) is null;

    /// <summary>Called by a module that has read its input: frees what the module before it in the layer returned.</summary>
    internal static void FreeReturned()
    {
        t_returned?.Dispose();
        t_returned = null;
    }

    /// <summary>Called by a module with what it returns.</summary>
    internal static void Return(Tensor output) => t_returned = t_isRunning ? output : null;

    internal override object? Forward(IReplacedModule module, object?[] arguments)
    {
        t_isRunning = true;
        try
        {
            return module.CallOriginal(arguments);
        }
        finally
        {
            (t_isRunning, t_returned) = (false, null);
        }
    }
}
