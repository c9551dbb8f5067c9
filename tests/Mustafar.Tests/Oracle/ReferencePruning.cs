using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>Per-token magnitude pruning, by sorting: slow, and written without a look at the kernels.</summary>
internal static class ReferencePruning
{
    /// <summary>Which channels of a row are kept: the largest magnitudes, NaN above all, of equal ones the lower channel.</summary>
    internal static bool[] Keep(ReadOnlySpan<float> row, int keep)
    {
        double[] magnitudes = new double[row.Length];
        for (int c = 0; c < row.Length; c++)
        {
            magnitudes[c] = float.IsNaN(row[c]) ? double.PositiveInfinity : float.IsInfinity(row[c]) ? double.MaxValue : Math.Abs((double)row[c]);
        }

        bool[] kept = new bool[row.Length];
        foreach (int channel in Enumerable.Range(0, row.Length).OrderByDescending(c => magnitudes[c]).ThenBy(c => c).Take(keep))
        {
            kept[channel] = true;
        }

        return kept;
    }

    /// <summary>The mask of a tensor [.., head_dim].</summary>
    internal static Tensor Mask(Tensor source, int keep)
    {
        long[] shape = source.shape;
        int headDim = (int)shape[^1];
        float[] data = Values.Of(source);
        bool[] mask = new bool[data.Length];
        for (int row = 0; row < data.Length; row += headDim)
        {
            Keep(data.AsSpan(row, headDim), keep).CopyTo(mask, row);
        }

        return tensor(mask).reshape(shape);
    }

    /// <summary>A tensor with all other channels zero.</summary>
    internal static Tensor Prune(Tensor tensor, int keep) =>
        where(Mask(tensor, keep).to(tensor.device), tensor, zeros_like(tensor));
}
