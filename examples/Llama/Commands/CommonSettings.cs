using Mustafar.Models.Evaluation;
using Mustafar.Models.Tokenizer;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Values of the options common to all commands.</summary>
/// <param name="Model">Directory of the checkpoint.</param>
/// <param name="Attention">What the attention layers read.</param>
/// <param name="Cache">Settings of a compressed cache.</param>
/// <param name="Device">Where the model runs.</param>
/// <param name="DType">Data type of the weights and the cache; the checkpoint's if null.</param>
/// <param name="Frame">Whether bos_token and eos_token are added to a text.</param>
/// <param name="Threads">CPU threads; torch's choice if null.</param>
internal sealed record CommonSettings(
    string Model, AttentionKind Attention, CacheSetting Cache, Device Device, ScalarType? DType, TextFrame Frame, int? Threads)
{
    /// <summary>The options that all layers have in common.</summary>
    public MustafarOptions Options => Cache.Options!;
}
