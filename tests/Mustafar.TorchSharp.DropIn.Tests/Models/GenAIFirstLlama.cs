using static TorchSharp.torch;

// Names and fields are those of the first version of Microsoft.ML.GenAI.LLaMA.
#pragma warning disable IDE1006, CA1812, CA1852, IDE0052, CS0169, CS0414

namespace Mustafar.Tests.DropIn.Models.GenAI.First;

internal sealed class LlamaConfig
{
    public int MaxPositionEmbeddings { get; set; } = 131072;
}

/// <summary>What of the model says that its masks have a window: that it has no rotary positions of its own.</summary>
internal class LlamaModel : nn.Module<CausalLMModelInput, Tensor>
{
    private readonly LlamaConfig _config = new();
    private readonly IKVCache _cache = new DynamicKVCache();
    private readonly Attention self_attn = new(0, 2, 1, Subject.HeadDim, ScalarType.Float32, useQkvProj: false, attentionDropout: 0);

    public LlamaModel()
        : base(nameof(LlamaModel)) => RegisterComponents();

    public override Tensor forward(CausalLMModelInput input) => throw new NotSupportedException();
}
