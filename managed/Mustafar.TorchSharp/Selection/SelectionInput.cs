using static TorchSharp.torch;

namespace Mustafar;

/// <summary>The input of a function that selects channels or rewrites tokens: tokens of one sequence that are about to be compressed.</summary>
public sealed class SelectionInput
{
    internal SelectionInput(Tensor tokens, int layer, int first, int kept) => (Tokens, Layer, First, Kept) = (tokens, layer, first, kept);

    /// <summary>The keys or values [num_kv_heads, tokens, head_dim], with the cache's type and device. Do not change or dispose
    /// them.</summary>
    public Tensor Tokens { get; }

    /// <summary>The layer's number in the cache, from 0.</summary>
    public int Layer { get; }

    /// <summary>Index of the first token in the sequence, not counting attention sinks.</summary>
    public int First { get; }

    /// <summary>Number of channels to keep of each token; for a mask, the most on average.</summary>
    public int Kept { get; }
}
