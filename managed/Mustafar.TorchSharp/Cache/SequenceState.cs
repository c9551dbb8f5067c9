using Mustafar.Native;

namespace Mustafar;

/// <summary>How many tokens each sequence has, and how many of them are compressed, where native code reads and writes them.</summary>
/// <remarks>Appending writes the next state beside the current one, so that a failure leaves the current one as it was.</remarks>
internal sealed unsafe class SequenceState(int batchSize)
{
    private BackendArray<int> _lengths = new(batchSize), _compressed = new(batchSize);
    private BackendArray<int> _nextLengths = new(batchSize), _nextCompressed = new(batchSize);

    internal ReadOnlySpan<int> Lengths => _lengths.Span[..batchSize];

    internal ReadOnlySpan<int> Compressed => _compressed.Span[..batchSize];

    internal int* LengthsPointer => _lengths.Pointer;

    internal int* CompressedPointer => _compressed.Pointer;

    internal int* NextLengthsPointer => _nextLengths.Pointer;

    internal int* NextCompressedPointer => _nextCompressed.Pointer;

    internal int Longest
    {
        get
        {
            int longest = 0;
            foreach (int length in Lengths)
            {
                longest = Math.Max(longest, length);
            }

            return longest;
        }
    }

    /// <summary>Makes the next state the current one.</summary>
    internal void Commit()
    {
        (_lengths, _nextLengths) = (_nextLengths, _lengths);
        (_compressed, _nextCompressed) = (_nextCompressed, _compressed);
    }

    /// <summary>Sets one sequence's current state.</summary>
    internal void Set(int sequence, int length, int compressed)
    {
        _lengths.Span[sequence] = length;
        _compressed.Span[sequence] = compressed;
    }
}
