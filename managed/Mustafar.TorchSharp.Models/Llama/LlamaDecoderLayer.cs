using System.Diagnostics.CodeAnalysis;
using static TorchSharp.torch;

namespace Mustafar.Models.Llama;

/// <summary>One layer: attention and MLP, each with a norm before it and added to its input.</summary>
public sealed class LlamaDecoderLayer : nn.Module
{
#pragma warning disable IDE1006 // the fields' names are the keys of the state dictionary
    private readonly RmsNorm input_layernorm;
    private readonly MustafarAttention self_attn;
    private readonly RmsNorm post_attention_layernorm;
    private readonly SwiGluMlp mlp;
#pragma warning restore IDE1006

    /// <summary>Makes a layer whose weights are not initialised.</summary>
    /// <param name="config">The model.</param>
    /// <param name="rotary">Positions; shared by all layers.</param>
    /// <param name="dtype">Type of the weights.</param>
    /// <param name="device">Device of the weights.</param>
    // RegisterComponents finds the children by reflection; compiled ahead of time, an application has only the fields that are named.
    [DynamicDependency(DynamicallyAccessedMemberTypes.NonPublicFields, typeof(LlamaDecoderLayer))]
    public LlamaDecoderLayer(LlamaConfig config, RotaryEmbedding rotary, ScalarType dtype, Device device)
        : base(nameof(LlamaDecoderLayer))
    {
        MustafarAttentionOptions attention = new()
        {
            HiddenSize = config.HiddenSize,
            NumHeads = config.NumHeads,
            NumKvHeads = config.NumKvHeads,
            HeadDim = config.HeadDim,
            QkvBias = config.QkvBias,
            OutputBias = config.AttentionOutputBias,
            QueryKeyNormEps = config.QueryKeyNorm ? config.RmsNormEps : null,
        };
        input_layernorm = new RmsNorm(config.HiddenSize, config.RmsNormEps, dtype, device);
        self_attn = new MustafarAttention(attention, rotary, dtype, device, initialize: false);
        post_attention_layernorm = new RmsNorm(config.HiddenSize, config.RmsNormEps, dtype, device);
        mlp = new SwiGluMlp(config, dtype, device);
        RegisterComponents();
    }

    /// <summary>Computes the layer for the new tokens of a step, in place.</summary>
    /// <param name="hidden">[batch, n, hidden_size], contiguous.</param>
    /// <param name="step">The step.</param>
    /// <param name="layer">The layer's index in the cache.</param>
    public void Apply(Tensor hidden, CacheStep step, int layer)
    {
        self_attn.AddTo(hidden, input_layernorm, step, layer);
        mlp.AddTo(hidden, post_attention_layernorm, step.Tokens == 1 ? step.Buffers : null);
    }
}
