using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Model;

/// <summary>The feed-forward part of a layer: down(silu(gate(x)) · up(x)) (SwiGLU, arXiv 2002.05202).</summary>
public sealed class SwiGluMlp : nn.Module<Tensor, Tensor>
{
#pragma warning disable IDE1006 // the fields' names are the keys of the state dictionary
    private readonly Linear gate_proj;
    private readonly Linear up_proj;
    private readonly Linear down_proj;
#pragma warning restore IDE1006

    /// <summary>Makes a layer whose weights are not initialised.</summary>
    /// <param name="config">The model.</param>
    /// <param name="dtype">Type of the weights.</param>
    /// <param name="device">Device of the weights.</param>
    public SwiGluMlp(LlamaConfig config, ScalarType dtype, Device device)
        : base(nameof(SwiGluMlp))
    {
        gate_proj = Weights.Linear(config.HiddenSize, config.IntermediateSize, config.MlpBias, dtype, device);
        up_proj = Weights.Linear(config.HiddenSize, config.IntermediateSize, config.MlpBias, dtype, device);
        down_proj = Weights.Linear(config.IntermediateSize, config.HiddenSize, config.MlpBias, dtype, device);
        RegisterComponents();
    }

    /// <summary>Computes the layer.</summary>
    /// <param name="input">[.., hidden_size].</param>
    /// <returns>[.., hidden_size].</returns>
    public override Tensor forward(Tensor input)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor gate = nn.functional.silu(gate_proj.call(input), inplace: true);
        return down_proj.call(gate.mul_(up_proj.call(input))).MoveToOuterDisposeScope();
    }
}
