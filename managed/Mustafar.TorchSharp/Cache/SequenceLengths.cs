using System.Collections;

namespace Mustafar;

/// <summary>A live view of a cache's lengths.</summary>
internal sealed class SequenceLengths(SequenceState state, int batchSize) : IReadOnlyList<int>
{
    public int Count => batchSize;

    public int this[int index] => state.Lengths[index];

    public IEnumerator<int> GetEnumerator()
    {
        for (int b = 0; b < batchSize; b++)
        {
            yield return state.Lengths[b];
        }
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}
