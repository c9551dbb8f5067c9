using System.Collections;

namespace Mustafar;

/// <summary>A live view of a cache's lengths.</summary>
internal sealed class SequenceLengths(SequenceState state, AttentionSinks? sinks, int batchSize) : IReadOnlyList<int>
{
    public int Count => batchSize;

    public int this[int index] => state.Lengths[index] + (sinks is null ? 0 : sinks.Counts[index]);

    public IEnumerator<int> GetEnumerator()
    {
        for (int b = 0; b < batchSize; b++)
        {
            yield return this[b];
        }
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}
