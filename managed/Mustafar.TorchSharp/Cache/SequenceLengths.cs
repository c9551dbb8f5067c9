using System.Collections;

namespace Mustafar;

/// <summary>A live view of the lengths of sequences in all slots of a table.</summary>
internal sealed class SequenceLengths(SequenceTable table) : IReadOnlyList<int>
{
    public int Count => table.Slots;

    public int this[int index] => table[index].Tokens;

    public IEnumerator<int> GetEnumerator()
    {
        for (int slot = 0; slot < Count; slot++)
        {
            yield return this[slot];
        }
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}
