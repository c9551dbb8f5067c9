using System.Diagnostics.CodeAnalysis;
using System.Reflection;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// The implementation of a module that computes each token independently and whose temporaries for a long prompt are many times its output:
/// it runs over some tokens at a time. In Microsoft.ML.GenAI these are the feed-forward modules and the norms, which compute in f32.
/// </summary>
internal sealed class TokenPieces(nn.Module original) : ModuleReplacement(original)
{
    /// <summary>Number of tokens at a time, over all sequences: enough for products to be as fast as with more.</summary>
    internal const int AtOnce = 2048;

    // Each class, with the member that identifies it.
    private static readonly Dictionary<string, string> Members = new()
    {
        ["LlamaMLP"] = "down_proj",
        ["MistralMLP"] = "down_proj",
        ["Phi3MLP"] = "down_proj",
        ["RMSNorm"] = "weight",
    };

    /// <summary>Another number in place of <see cref="AtOnce"/>, for tests.</summary>
    internal int Most { get; set; } = AtOnce;

    /// <summary>Whether a module is such a one, by the names of its class and members, and its class can be derived from.</summary>
    [RequiresDynamicCode("Asks whether a subclass can be emitted.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    internal static bool Matches(nn.Module candidate)
    {
        Type type = candidate.GetType();
        return Members.TryGetValue(type.Name, out string? name)
            && Reflected.Get(candidate, name) is object member
            && (member is not Tensor weight || weight.dim() == 1) // of a norm over the channels of each token
            && Reflected.ForwardParameters(candidate) is [ParameterInfo input]
            && input.ParameterType == typeof(Tensor)
            && ReplacementType.WhyNot(type) is null;
    }

    internal override object? Forward(IReplacedModule module, object?[] arguments)
    {
        if (arguments[0] is not Tensor input || input.dim() != 3 || input.size(0) * input.size(1) <= Most || is_grad_enabled())
        {
            return module.CallOriginal(arguments);
        }

        (long tokens, long step) = (input.size(1), Math.Max(1, Most / Math.Max(1, input.size(0))));
        Tensor? output = null;
        for (long first = 0; first < tokens; first += step)
        {
            using DisposeScope scope = NewDisposeScope();
            long count = Math.Min(step, tokens - first);
            Tensor piece = (Tensor)module.CallOriginal([input.narrow(1, first, count)])!;
            output ??= empty([input.size(0), tokens, piece.size(2)], dtype: piece.dtype, device: piece.device).MoveToOuterDisposeScope();
            output.narrow(1, first, count).copy_(piece);
        }

        DecoderLayer.FreeReturned();
        DecoderLayer.Return(output!);
        return output;
    }
}
