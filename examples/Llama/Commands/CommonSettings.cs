using Mustafar.Models.Evaluation;
using Mustafar.Models.Tokenizer;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Values of the options that all commands have.</summary>
/// <param name="Model">Directory of the checkpoint.</param>
/// <param name="Attention">What the attention layers read.</param>
/// <param name="Cache">How a compressed cache prunes and stores.</param>
/// <param name="Device">Where the model runs.</param>
/// <param name="DType">Type of the weights and of the cache; the checkpoint's if null.</param>
/// <param name="Frame">Whether a text gets the tokens that begin and end it.</param>
/// <param name="Threads">CPU threads; torch's choice if null.</param>
internal sealed record CommonSettings(
    string Model, AttentionKind Attention, CacheSetting Cache, Device Device, ScalarType? DType, TextFrame Frame, int? Threads)
{
    /// <summary>The options that all layers have in common.</summary>
    public MustafarOptions Options => Cache.Options!;
}
