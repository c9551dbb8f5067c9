using Mustafar.Modules;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar;

// The layer together with the operations around it, as a step of a model computes it.
public sealed partial class MustafarAttention
{
    /// <summary>hidden += attention(norm(hidden)), for the new tokens of a step.</summary>
    /// <remarks>
    /// Uses few operations and, in a step of one token, no memory other than <see cref="CacheStep.Buffers"/>, so a
    /// <see cref="DecodeGraph"/> can repeat it. q, k and v are one product if their weights are adjacent in memory
    /// (<see cref="Weights.Linears"/>). Projections that are not a <see cref="Linear"/> are called as modules.
    /// </remarks>
    /// <param name="hidden">Hidden states [batch, n, hidden_size] of the step's sequences, contiguous; changed in place.</param>
    /// <param name="norm">Norm of the layer's input.</param>
    /// <param name="step">The step.</param>
    /// <param name="layer">The layer's index in the cache.</param>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit.</exception>
    /// <exception cref="InvalidOperationException">The layer has already attended, another one failed, or the step has ended.</exception>
    public void AddTo(Tensor hidden, RmsNorm norm, CacheStep step, int layer)
    {
        ArgumentNullException.ThrowIfNull(hidden);
        ArgumentNullException.ThrowIfNull(norm);
        ArgumentNullException.ThrowIfNull(step);
        Check(hidden, step.Sequences.Count);
        Check(step.Cache.KeyValueShape, nameof(step));
        if (!hidden.is_contiguous())
        {
            throw new ArgumentException($"Expected contiguous hidden states, but got strides [{string.Join(", ", hidden.stride())}].", nameof(hidden));
        }

        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        if (q_proj is not Linear query || k_proj is not Linear key || v_proj is not Linear value || o_proj is not Linear output
            || q_norm is not (null or RmsNorm) || k_norm is not (null or RmsNorm))
        {
            hidden.add_(forward(norm.call(hidden), step, layer), Scalars.One);
            return;
        }

        (long batch, long tokens) = (hidden.size(0), hidden.size(1));
        long heads = Options.NumHeads + (2L * Options.NumKvHeads);
        StepBuffers? buffers = step.Tokens == 1 ? step.Buffers : null;
        Tensor projected = buffers?.Get("qkv", hidden.dtype, batch, tokens, heads * Options.HeadDim)
            ?? empty([batch, tokens, heads * Options.HeadDim], dtype: hidden.dtype, device: hidden.device);
        LinearFusion fusion = new() { Norm = norm.Weight, Eps = norm.Eps };
        Linear[] inputs = [query, key, value];
        Tensor[] biases = [.. inputs.Select(part => part.bias).OfType<Tensor>()];
        Tensor? bias = biases.Length == inputs.Length ? Weights.Joint(biases) : null;
        if (Weights.Joint(query.weight, key.weight, value.weight) is Tensor joint && (bias is not null || biases.Length == 0))
        {
            MustafarOps.FusedLinear(hidden, joint, fusion with { Bias = bias }, projected, buffers);
        }
        else
        {
            long first = 0;
            foreach (Linear part in inputs)
            {
                long count = part.weight.size(0);
                MustafarOps.FusedLinear(hidden, part.weight, fusion with { Bias = part.bias }, projected.narrow(2, first, count), buffers);
                first += count;
            }
        }

        Tensor all = projected.view(batch, tokens, heads, Options.HeadDim).transpose(1, 2);
        RotaryHeads parts = new(
            all.narrow(1, 0, Options.NumHeads),
            all.narrow(1, Options.NumHeads, Options.NumKvHeads),
            all.narrow(1, Options.NumHeads + Options.NumKvHeads, Options.NumKvHeads));
        Tensor attended = step.Attend(layer, parts, _rotary.AnglesOn(hidden.device), Norms(), Options.Scale);
        MustafarOps.FusedLinear(
            attended.transpose(1, 2).reshape(batch, tokens, Options.NumHeads * (long)Options.HeadDim),
            output.weight, new LinearFusion { Bias = output.bias, Residual = hidden }, hidden, buffers);
    }

    private HeadNorms? Norms() => q_norm is RmsNorm query && k_norm is RmsNorm key ? new HeadNorms(query.Weight, key.Weight, query.Eps) : null;
}
