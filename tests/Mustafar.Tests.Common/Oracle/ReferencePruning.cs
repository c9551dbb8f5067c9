using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>Per-token magnitude pruning, by sorting: slow, and written without a look at the kernels.</summary>
internal static class ReferencePruning
{
    /// <summary>Which channels of a row are kept: the largest magnitudes, NaN above all, of equal ones the lower channel.</summary>
    internal static bool[] Keep(ReadOnlySpan<float> row, int keep)
    {
        double[] magnitudes = [.. row.ToArray().Select(Magnitude)];
        int[] channels = [.. Enumerable.Range(0, row.Length)];
        Array.Sort(channels, (a, b) => magnitudes[a] == magnitudes[b] ? a.CompareTo(b) : magnitudes[b].CompareTo(magnitudes[a]));
        bool[] kept = new bool[row.Length];
        foreach (int channel in channels.Take(keep))
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

    /// <summary>The mask of a tensor [batch, heads, tokens, head_dim] by any pattern.</summary>
    internal static Tensor Mask(Tensor source, int keep, SparsityPattern pattern)
    {
        if (pattern == SparsityPattern.Unstructured)
        {
            return Mask(source, keep);
        }

        long[] shape = source.shape;
        (int tokens, int headDim) = ((int)shape[^2], (int)shape[^1]);
        float[] data = Values.Of(source);
        bool[] mask = new bool[data.Length];
        for (int head = 0; head < data.Length; head += tokens * headDim)
        {
            foreach (List<(int Token, int Channel, int Group)> unit in Units(tokens, headDim, pattern))
            {
                KeepUnit(unit, keep * 16 / headDim, (token, channel) => data[head + (token * headDim) + channel], (token, channel) => mask[head + (token * headDim) + channel] = true, tokens);
            }
        }

        return tensor(mask).reshape(shape);
    }

    /// <summary>A tensor with all other channels zero.</summary>
    internal static Tensor Prune(Tensor tensor, int keep, SparsityPattern pattern = SparsityPattern.Unstructured) =>
        where(Mask(tensor, keep, pattern).to(tensor.device), tensor, zeros_like(tensor));

    // The units of 16 of a head's tokens, with the group of four that each element belongs to.
    private static IEnumerable<List<(int Token, int Channel, int Group)>> Units(int tokens, int headDim, SparsityPattern pattern)
    {
        if (pattern == SparsityPattern.BalancedKeys)
        {
            for (int token = 0; token < tokens; token++)
            {
                for (int unit = 0; unit < headDim / 16; unit++)
                {
                    yield return [.. from m in Enumerable.Range(0, 4)
                                     from i in Enumerable.Range(0, 4)
                                     select (token, (16 * (unit / 4)) + (unit % 4) + (4 * i) + (m * headDim / 4), i)];
                }
            }
        }
        else
        {
            for (int token = 0; token < tokens; token += 4)
            {
                for (int channel = 0; channel < headDim; channel += 4)
                {
                    yield return [.. from m in Enumerable.Range(0, 4) from i in Enumerable.Range(0, 4) select (token + m, channel + i, i)];
                }
            }
        }
    }

    // From the largest down (ties: lower token, then lower channel), unless the group has two already; missing tokens are zeros.
    private static void KeepUnit(
        List<(int Token, int Channel, int Group)> unit, int keep, Func<int, int, float> value, Action<int, int> take, int tokens)
    {
        int[] inGroup = new int[4];
        foreach ((int token, int channel, int group) in unit
            .OrderByDescending(e => e.Token < tokens ? Magnitude(value(e.Token, e.Channel)) : 0).ThenBy(e => e.Token).ThenBy(e => e.Channel))
        {
            if (keep == 0 || inGroup[group] == 2)
            {
                continue;
            }

            inGroup[group]++;
            keep--;
            if (token < tokens)
            {
                take(token, channel);
            }
        }
    }

    private static double Magnitude(float value) =>
        float.IsNaN(value) ? double.PositiveInfinity : float.IsInfinity(value) ? double.MaxValue : Math.Abs((double)value);
}
