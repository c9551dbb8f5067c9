using System.Reflection;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// What stands behind a feed-forward module of Microsoft.ML.GenAI (<c>LlamaMLP</c>, <c>Phi3MLP</c>), whose temporaries of a long prompt
/// are many times its output: it runs over some tokens at a time.
/// </summary>
internal sealed class TokenPieces(nn.Module original) : ModuleReplacement(original)
{
    private static readonly string[] Names = ["LlamaMLP", "Phi3MLP"];

    /// <summary>Tokens at a time, of all sequences.</summary>
    internal int Most { get; set; } = 4096;

    /// <summary>Whether a module is such a one, by the names of its class and members, of which a class can be derived.</summary>
    internal static bool Matches(nn.Module candidate)
    {
        Type type = candidate.GetType();
        return Names.Contains(type.Name)
            && !type.IsSealed
            && Reflected.Has(type, "down_proj")
            && Reflected.ForwardParameters(candidate) is [ParameterInfo input]
            && input.ParameterType == typeof(Tensor);
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

        return output;
    }
}
