using static TorchSharp.torch;

namespace Mustafar;

/// <summary>What a step does to dense sequences: the same in all layers.</summary>
internal sealed class DenseStep
{
    /// <summary>Plans a step.</summary>
    /// <param name="slots">The slot of each row.</param>
    /// <param name="lengths">Tokens of the sequence in each slot.</param>
    /// <param name="tokens">Tokens of a row, including padding.</param>
    /// <param name="counts">Tokens of each row; all if empty.</param>
    internal DenseStep(ReadOnlySpan<int> slots, ReadOnlySpan<int> lengths, int tokens, ReadOnlySpan<int> counts)
    {
        (Slots, Tokens) = (slots.ToArray(), tokens);
        (Before, After, Counts) = (new int[slots.Length], new int[slots.Length], new int[slots.Length]);
        LengthsAfter = lengths.ToArray();
        for (int b = 0; b < slots.Length; b++)
        {
            int count = Counts[b] = counts.IsEmpty ? tokens : counts[b];
            Before[b] = lengths[slots[b]];
            After[b] = LengthsAfter[slots[b]] = checked(Before[b] + count);
            Longest = Math.Max(Longest, After[b]);
            IsPadded |= count < tokens;
        }

        IsUniform = !IsPadded && Before.AsSpan().IndexOfAnyExcept(Before[0]) < 0;
        IsRun = true;
        for (int b = 1; b < slots.Length; b++)
        {
            IsRun &= slots[b] == slots[b - 1] + 1;
        }
    }

    internal int[] Slots { get; }

    /// <summary>Tokens of a row, including padding.</summary>
    internal int Tokens { get; }

    /// <summary>Tokens of each row's sequence before the step.</summary>
    internal int[] Before { get; }

    /// <summary>Tokens of each row's sequence after the step.</summary>
    internal int[] After { get; }

    /// <summary>Tokens of each row without padding.</summary>
    internal int[] Counts { get; }

    /// <summary>Tokens of the sequence in each slot after the step.</summary>
    internal int[] LengthsAfter { get; }

    /// <summary>Tokens of the longest sequence after the step.</summary>
    internal int Longest { get; }

    /// <summary>Number of places that each sequence must have: a step of one token never fills the last.</summary>
    internal int Room => Tokens == 1 ? checked(Longest + 1) : Longest;

    /// <summary>Whether a row has padding.</summary>
    internal bool IsPadded { get; }

    /// <summary>Whether all rows have the same length, and no padding.</summary>
    internal bool IsUniform { get; }

    /// <summary>Whether the slots are consecutive.</summary>
    internal bool IsRun { get; }

    /// <summary>The rows of a tensor [slots, ...]: a view if the slots are consecutive, otherwise a copy.</summary>
    internal Tensor Rows(Tensor all) => IsRun
        ? all.narrow(0, Slots[0], Slots.Length)
        : all.index_select(0, tensor(Slots.Select(slot => (long)slot).ToArray(), device: all.device));
}
