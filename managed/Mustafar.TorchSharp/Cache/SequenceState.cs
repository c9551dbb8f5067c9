using Mustafar.Native;
using TorchSharp;

namespace Mustafar;

/// <summary>How many tokens each sequence has, and how many of them are compressed, where native code reads and writes them.</summary>
/// <remarks>
/// Appending writes the next state beside the current one, so that a failure leaves the current one as it was. The host computes the
/// same numbers for itself, so that it never waits for a device.
/// </remarks>
internal sealed unsafe class SequenceState(int batchSize, torch.Device device) : IDisposable
{
    private BackendArray<int> _lengths = new(batchSize, device), _compressed = new(batchSize, device);
    private BackendArray<int> _nextLengths = new(batchSize, device), _nextCompressed = new(batchSize, device);

    internal ReadOnlySpan<int> Lengths => _lengths.Span;

    internal ReadOnlySpan<int> Compressed => _compressed.Span;

    /// <summary>The host's copy of the next state.</summary>
    internal Span<int> NextLengths => _nextLengths.Span;

    /// <summary>The host's copy of the next state.</summary>
    internal Span<int> NextCompressed => _nextCompressed.Span;

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

    /// <summary>Sets one sequence's current state, on the host until <see cref="Upload"/>.</summary>
    internal void Set(int sequence, int length, int compressed)
    {
        _lengths.Span[sequence] = length;
        _compressed.Span[sequence] = compressed;
    }

    /// <summary>Brings what <see cref="Set"/> changed to the device.</summary>
    internal void Upload()
    {
        _lengths.Upload();
        _compressed.Upload();
    }

    public void Dispose()
    {
        _lengths.Dispose();
        _compressed.Dispose();
        _nextLengths.Dispose();
        _nextCompressed.Dispose();
    }
}
