using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Rotates each sequence of [batch, heads, n, head_dim] left by its own number of tokens.</summary>
internal static class TokenTurn
{
    /// <summary>What <see cref="Apply"/> needs to rotate sequence b by counts[b] tokens, Int64 [batch, 1, n, 1]; not in any
    /// scope.</summary>
    internal static Tensor By(int[] counts, int tokens, Device device)
    {
        using DisposeScope scope = NewDisposeScope();
        long[] source = new long[counts.Length * (long)tokens];
        for (int i = 0; i < source.Length; i++)
        {
            source[i] = ((i % tokens) + counts[i / tokens]) % tokens;
        }

        return tensor(source, device: device).reshape(counts.Length, 1, tokens, 1).DetachFromDisposeScope();
    }

    /// <summary>The rotated tensor.</summary>
    internal static Tensor Apply(Tensor tensor, Tensor turn) => tensor.gather(2, turn.expand(tensor.Sizes()));
}
