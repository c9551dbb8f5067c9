namespace Mustafar.Tests.Oracle;

/// <summary>Sampling as mustafar.h defines it, one token at a time and by sorting.</summary>
internal static class ReferenceSampling
{
    /// <summary>The token of one sequence, or −1.</summary>
    internal static int Token(float[] logits, SamplingParameters p, long step, int[]? counts = null, bool[]? prompt = null, bool[]? allowed = null)
    {
        List<(int Token, float Score)> scores = [];
        for (int t = 0; t < logits.Length; t++)
        {
            if (allowed?[t] ?? true)
            {
                scores.Add((t, Penalised(logits[t], counts?[t] ?? 0, prompt?[t] ?? false, p)));
            }
        }

        if (scores.Count == 0 || scores.Any(item => float.IsNaN(item.Score)))
        {
            return -1;
        }

        // Stable: the lower id first among equals.
        scores = [.. scores.OrderByDescending(item => item.Score + 0f)];
        float largest = scores[0].Score;
        if (!float.IsFinite(largest))
        {
            return -1;
        }

        if ((float)p.Temperature == 0)
        {
            return scores[0].Token;
        }

        List<(int Token, ulong Weight)> left = [.. scores.Select(item => (item.Token, Weight(item.Score, largest, (float)p.Temperature)))
            .Where(item => item.Item2 > 0)];
        if (p.TopK > 0)
        {
            left = [.. left.Take(p.TopK)];
        }

        if ((float)p.TopP < 1)
        {
            ulong wanted = PartOf((float)p.TopP, Sum(left));
            int count = 0;
            for (ulong sum = 0; count == 0 || sum < wanted; count++)
            {
                sum += left[count].Weight;
            }

            left = left[..count];
        }

        if (p.MinP > 0)
        {
            ulong least = PartOf((float)p.MinP, 1UL << 40);
            left = [.. left.Where(item => item.Weight >= least)];
        }

        ulong drawn = (ulong)(((UInt128)RandomBits(p.Seed, (ulong)step) * Sum(left)) >> 64);
        foreach ((int token, ulong weight) in left.OrderBy(item => item.Token))
        {
            if (drawn < weight)
            {
                return token;
            }

            drawn -= weight;
        }

        throw new InvalidOperationException("A draw is below the sum of the weights.");
    }

    /// <summary>Words 1 and 0 of Philox4x32-10.</summary>
    internal static ulong RandomBits(ulong seed, ulong step)
    {
        uint[] c = [(uint)step, (uint)(step >> 32), 0, 0];
        uint k0 = (uint)seed, k1 = (uint)(seed >> 32);
        for (int round = 0; round < 10; round++)
        {
            ulong p0 = 0xD2511F53UL * c[0], p1 = 0xCD9E8D57UL * c[2];
            c = [(uint)(p1 >> 32) ^ c[1] ^ k0, (uint)p1, (uint)(p0 >> 32) ^ c[3] ^ k1, (uint)p0];
            unchecked
            {
                k0 += 0x9E3779B9;
                k1 += 0xBB67AE85;
            }
        }

        return ((ulong)c[1] << 32) | c[0];
    }

    private static float Penalised(float logit, int count, bool inPrompt, SamplingParameters p)
    {
        float repetition = (float)p.RepetitionPenalty;
        if ((count > 0 || inPrompt) && repetition != 1)
        {
            logit = logit > 0 ? logit / repetition : logit * repetition;
        }

        double penalty = ((double)(float)p.FrequencyPenalty * count) + (float)p.PresencePenalty;
        return count > 0 ? logit - (float)penalty : logit;
    }

    private static ulong Weight(float score, float largest, float temperature)
    {
        float power = (score - largest) / temperature * 1.44269504f;
        power = power > -63 ? power : -63;
        float whole = power + 12582912f - 12582912f, rest = power - whole, value = 1.535336188e-4f;
        foreach (float c in (float[])[1.339887440e-3f, 9.618437357e-3f, 5.550332548e-2f, 2.402264791e-1f, 6.931472028e-1f, 1f])
        {
            value = (value * rest) + c;
        }

        ulong mantissa = (ulong)(value * 8388608f);
        int shift = (int)whole + 17;
        return shift >= 0 ? mantissa << shift : mantissa >> -shift;
    }

    private static ulong PartOf(float part, ulong total) => Math.Min(total, (ulong)Math.Ceiling((double)part * total));

    private static ulong Sum(List<(int Token, ulong Weight)> items) => items.Aggregate(0UL, (sum, item) => sum + item.Weight);
}
