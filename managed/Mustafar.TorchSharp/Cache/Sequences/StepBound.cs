using System.Numerics;
using Mustafar.Native;

namespace Mustafar;

/// <summary>Bounds of token counts that stay the same while sequences grow by many tokens.</summary>
/// <remarks>
/// What a graph does depends on a bound of the lengths: how attention is split, or how much of a dense cache is read. Large steps of the
/// bound make graphs last, small ones keep it close to the lengths: a step is a 32nd to a 64th of them, but at least 256 tokens.
/// </remarks>
internal static class StepBound
{
    private const int SmallestStep = 256;

    /// <summary>The bound for a number of tokens.</summary>
    internal static int Of(int tokens)
    {
        long step = Math.Max(SmallestStep, BitOperations.RoundUpToPowerOf2((uint)tokens) / 64);
        return (int)Math.Min(int.MaxValue - NativeConstants.BlockTokens, (tokens + step - 1) / step * step);
    }
}
