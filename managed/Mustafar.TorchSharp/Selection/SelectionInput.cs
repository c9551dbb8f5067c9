using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What a function that chooses channels, or rewrites tokens, is given: tokens of one sequence that are about to be compressed.</summary>
public sealed class SelectionInput
{
    internal SelectionInput(Tensor tokens, int layer, int first, int kept) => (Tokens, Layer, First, Kept) = (tokens, layer, first, kept);

    /// <summary>Their keys or values [num_kv_heads, tokens, head_dim] in the type and on the device of the cache; not to be changed or
    /// disposed.</summary>
    public Tensor Tokens { get; }

    /// <summary>Which layer of the cache, from 0.</summary>
    public int Layer { get; }

    /// <summary>Place of the first of them in the sequence, not counting sinks.</summary>
    public int First { get; }

    /// <summary>Channels that are kept of each token; of a mask, on average at most.</summary>
    public int Kept { get; }
}
