using System.Numerics;

namespace Mustafar.Models.Generation;

/// <summary>Finds the largest of many numbers.</summary>
/// <remarks>Its buffers are kept from call to call.</remarks>
internal sealed class LargestNumbers
{
    private readonly PriorityQueue<int, (double Number, int Order)> _queue = new();
    private readonly List<int> _indices = [];

    /// <summary>Finds the largest.</summary>
    /// <param name="numbers">The numbers, none of them NaN.</param>
    /// <param name="count">How many to find; all of them if there are fewer.</param>
    /// <returns>Their indices, the largest number's first, the lower index first among equals. The list is overwritten by the next
    /// call.</returns>
    public List<int> Of<T>(ReadOnlySpan<T> numbers, int count)
        where T : IFloatingPointIeee754<T>
    {
        // The smallest of the chosen is on top of the queue; among equals the highest index is.
        _queue.Clear();
        for (int i = 0; i < numbers.Length; i++)
        {
            if (_queue.Count < count)
            {
                _queue.Enqueue(i, (double.CreateChecked(numbers[i]), -i));
            }
            else if (numbers[i] > numbers[_queue.Peek()])
            {
                _queue.DequeueEnqueue(i, (double.CreateChecked(numbers[i]), -i));
            }
        }

        _indices.Clear();
        while (_queue.TryDequeue(out int index, out _))
        {
            _indices.Add(index);
        }

        _indices.Reverse();
        return _indices;
    }
}
