using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>Rows as they read after they were stored in integers, by docs/format.md and a number at a time.</summary>
internal static class ReferenceIntegers
{
    /// <summary>Pruned rows [.., head_dim] that were stored in so many bits: pruned channels are 0, kept ones q · s · f in their type.</summary>
    /// <param name="rows">The rows as they were.</param>
    /// <param name="mask">True where a channel was kept.</param>
    /// <param name="bits">16, 8 or 4.</param>
    /// <param name="scales">A scale for each channel of a head, [heads, head_dim] with rows [heads, tokens, head_dim]; null for none.</param>
    /// <param name="rotated">Whether rows are rotated after that.</param>
    internal static Tensor Stored(Tensor rows, Tensor mask, int bits, float[]? scales = null, bool rotated = false)
    {
        if (bits == 16)
        {
            return where(mask.to(rows.device), rows, zeros_like(rows));
        }

        int headDim = (int)rows.shape[^1], tokens = (int)rows.shape[^2];
        float[] numbers = Values.Of(rows);
        bool[] kept = mask.to(CPU).contiguous().data<bool>().ToArray();
        for (int row = 0; row < numbers.Length; row += headDim)
        {
            int head = row / (headDim * tokens);
            Store(
                numbers.AsSpan(row, headDim), kept.AsSpan(row, headDim), bits == 8 ? 127 : 7, scales is null ? [] : scales.AsSpan(head * headDim, headDim), rotated);
        }

        return tensor(numbers).reshape(rows.shape).to(rows.dtype).to(rows.device);
    }

    /// <summary>The channel scales of keys [heads, tokens, head_dim]: [heads, head_dim].</summary>
    internal static float[] ChannelScales(Tensor keys)
    {
        (int heads, int tokens, int headDim) = ((int)keys.shape[0], (int)keys.shape[1], (int)keys.shape[2]);
        float[] numbers = Values.Of(keys), scales = new float[heads * headDim];
        for (int head = 0; head < heads; head++)
        {
            double[] largest = [.. Enumerable.Range(0, headDim).Select(channel => Enumerable.Range(0, tokens)
                .Select(token => Math.Abs((double)numbers[(((head * tokens) + token) * headDim) + channel]))
                .Select(magnitude => double.IsNaN(magnitude) ? double.PositiveInfinity : magnitude).Max())];
            double mean = largest.Where(Counts).DefaultIfEmpty(1).Average();
            for (int channel = 0; channel < headDim; channel++)
            {
                double scale = Counts(largest[channel]) ? Math.Clamp(largest[channel] / mean, 1 / 1024.0, 1024) : 1;
                scales[(head * headDim) + channel] = (float)(Half)(float)scale;
            }
        }

        return scales;

        static bool Counts(double magnitude) => magnitude > 0 && double.IsFinite(magnitude);
    }

    private static void Store(Span<float> row, ReadOnlySpan<bool> kept, int most, ReadOnlySpan<float> scales, bool rotated)
    {
        bool finite = true;
        float largest = 0;
        for (int c = 0; c < row.Length; c++)
        {
            finite &= float.IsFinite(row[c]);
            row[c] = !kept[c] ? 0 : scales.IsEmpty ? row[c] : row[c] / scales[c];
        }

        if (rotated)
        {
            Rotate(row);
        }

        foreach (float number in row)
        {
            finite &= float.IsFinite(number);
            largest = Math.Max(largest, Math.Abs(number));
        }

        Half scale = (Half)(largest / most);
        float step = Half.IsInfinity(scale) ? 65504 : (float)scale;
        for (int c = 0; c < row.Length; c++)
        {
            float quotient = step == 0 ? 0 : Math.Clamp(MathF.Round(row[c] / step, MidpointRounding.ToEven), -most, most);
            row[c] = quotient * step;
        }

        if (rotated)
        {
            Rotate(row);
        }

        for (int c = 0; c < row.Length; c++)
        {
            row[c] = !kept[c] ? 0 : finite ? row[c] * (scales.IsEmpty ? 1 : scales[c]) : float.NaN;
        }
    }

    // The Hadamard matrix times a row, summed up from neighbours to halves.
    private static void Rotate(Span<float> row)
    {
        for (int distance = 1; distance < row.Length; distance *= 2)
        {
            for (int c = 0; c < row.Length; c++)
            {
                if ((c & distance) == 0)
                {
                    (row[c], row[c + distance]) = (row[c] + row[c + distance], row[c] - row[c + distance]);
                }
            }
        }

        float factor = (float)(1 / Math.Sqrt(row.Length));
        foreach (ref float number in row)
        {
            number *= factor;
        }
    }
}
