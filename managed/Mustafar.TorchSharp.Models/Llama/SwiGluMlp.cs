using System.Diagnostics.CodeAnalysis;
using Mustafar.Modules;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Models.Llama;

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
    // RegisterComponents finds the children by reflection; compiled ahead of time, an application has only the fields that are named.
    [DynamicDependency(DynamicallyAccessedMemberTypes.NonPublicFields, typeof(SwiGluMlp))]
    public SwiGluMlp(LlamaConfig config, ScalarType dtype, Device device)
        : base(nameof(SwiGluMlp))
    {
        Linear[] inputs = Weights.Linears(
            config.HiddenSize, [config.IntermediateSize, config.IntermediateSize], config.MlpBias, dtype, device);
        (gate_proj, up_proj) = (inputs[0], inputs[1]);
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

    /// <summary>hidden += MLP(norm(hidden)), with few operations.</summary>
    /// <param name="hidden">[.., hidden_size], contiguous; changed in place.</param>
    /// <param name="inputNorm">What normalises the layer's input.</param>
    /// <param name="buffers">Where what is computed on the way goes; new tensors if null.</param>
    public void AddTo(Tensor hidden, RmsNorm inputNorm, StepBuffers? buffers)
    {
        ArgumentNullException.ThrowIfNull(hidden);
        ArgumentNullException.ThrowIfNull(inputNorm);
        using DisposeScope scope = NewDisposeScope();
        Tensor? weight = Weights.Joint(gate_proj.weight, up_proj.weight);
        Tensor? bias = gate_proj.bias is null ? null : Weights.Joint(gate_proj.bias, up_proj.bias!);
        if (weight is null || bias is null != gate_proj.bias is null)
        {
            // Converted since: each has memory of its own.
            hidden.add_(call(inputNorm.call(hidden)), Scalars.One);
            return;
        }

        // TorchSharp's shape takes as long as several small operators.
        long[] shape = new long[hidden.dim()];
        for (int axis = 0; axis < shape.Length; axis++)
        {
            shape[axis] = axis < shape.Length - 1 ? hidden.size(axis) : gate_proj.weight.size(0);
        }

        Tensor activated = buffers?.Get("mlp", hidden.dtype, shape) ?? empty(shape, dtype: hidden.dtype, device: hidden.device);
        LinearFusion fusion = new() { Norm = inputNorm.Weight, Eps = inputNorm.Eps, Bias = bias, Gated = true };
        MustafarOps.FusedLinear(hidden, weight, fusion, activated, buffers);
        MustafarOps.FusedLinear(
            activated, down_proj.weight, new LinearFusion { Bias = down_proj.bias, Residual = hidden }, hidden, buffers);
    }
}
