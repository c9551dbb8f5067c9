using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Decode;

/// <summary>The model whose steps are measured: a checkpoint, or random weights made on the device.</summary>
internal static class BenchmarkModel
{
    internal static LlamaForCausalLM Load(DecodeSettings settings) => settings.Model is DirectoryInfo folder
        ? LanguageModel.Load(folder.FullName, settings.DType, settings.Device, withTokenizer: false).Model
        : Random(settings);

    private static LlamaForCausalLM Random(DecodeSettings settings)
    {
        ModelSizes sizes = settings.Sizes;
        LlamaConfig config = new()
        {
            VocabSize = sizes.Vocab,
            HiddenSize = sizes.Hidden,
            IntermediateSize = sizes.Intermediate,
            NumLayers = sizes.Layers,
            NumHeads = sizes.Heads,
            NumKvHeads = sizes.KvHeads,
            HeadDim = sizes.Hidden / sizes.Heads,
            RmsNormEps = 1e-5,
            Rotary = new RotaryOptions { HeadDim = sizes.Hidden / sizes.Heads, Theta = 500_000 },
            MaxPositions = int.MaxValue,
        };
        using IDisposable noGrad = no_grad();
        manual_seed(0);
        LlamaForCausalLM model = new(config, settings.DType, settings.Device);
        foreach (TorchSharp.Modules.Parameter parameter in model.parameters())
        {
            _ = parameter.dim() == 1 ? parameter.fill_(1) : parameter.normal_(0, 0.02);
        }

        return model;
    }
}
