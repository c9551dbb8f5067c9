using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

public static partial class MustafarOps
{
    /// <summary>
    /// Rotary position embedding (RoFormer, arXiv 2104.09864) of queries and keys in the convention of Hugging Face checkpoints: channels i
    /// and i + rotary_dim / 2 are rotated together, channels from rotary_dim on are unchanged. Computed in float32 and rounded once; no
    /// gradient is recorded.
    /// </summary>
    /// <param name="heads">Float32, Float16 or BFloat16 heads of head_dim 2 to 512.</param>
    /// <param name="positions">Int32 [batch, tokens], contiguous, on the heads' device, at least 0; read when the call runs. A position
    /// outside the tables, or a negative one, is an error on the CPU and gives NaN on CUDA.</param>
    /// <param name="angles">The rotation angles; rotary_dim is twice their number of columns.</param>
    /// <param name="norms">RMSNorm of each head before the rotation; none if null.</param>
    /// <param name="output">Receives the results; each may be its own input. New tensors if null.</param>
    /// <returns>The output.</returns>
    /// <exception cref="ArgumentException">A type, device, layout or shape doesn't fit, or a position on the CPU.</exception>
    /// <exception cref="ArgumentOutOfRangeException"><see cref="HeadNorms.Eps"/> is negative or not finite.</exception>
    public static RotaryHeads Rotate(
        RotaryHeads heads, Tensor positions, RotaryAngles angles, HeadNorms? norms = null, RotaryHeads? output = null)
    {
        using DisposeScope scope = NewDisposeScope();
        HeadRotation rotation = new(heads, positions, angles, norms, output);
        rotation.Apply();
        RotaryHeads result = rotation.Output;
        if (output is null)
        {
            result.Query.MoveToOuterDisposeScope();
            result.Key.MoveToOuterDisposeScope();
            result.Value?.MoveToOuterDisposeScope();
        }

        return result;
    }
}
