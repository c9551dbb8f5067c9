using System.Collections;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Keys and values in order of insertion; a key that is set again keeps its place. Nothing is ever removed.</summary>
/// <param name="comparer">Which keys are equal.</param>
internal sealed class DictItems(IEqualityComparer<object> comparer) : IReadOnlyCollection<KeyValuePair<object, object?>>
{
    private readonly Dictionary<object, int> _places = new(comparer);
    private readonly List<KeyValuePair<object, object?>> _items = [];

    /// <summary>The number of keys.</summary>
    public int Count => _items.Count;

    /// <summary>The keys.</summary>
    public IEnumerable<object> Keys => _items.Select(item => item.Key);

    /// <summary>The values.</summary>
    public IEnumerable<object?> Values => _items.Select(item => item.Value);

    /// <summary>Sets the value of a key.</summary>
    public object? this[object key]
    {
        set
        {
            if (!TryAdd(key, value))
            {
                int place = _places[key];
                _items[place] = new(_items[place].Key, value);
            }
        }
    }

    /// <summary>Adds a new key.</summary>
    public bool TryAdd(object key, object? value)
    {
        if (!_places.TryAdd(key, _items.Count))
        {
            return false;
        }

        _items.Add(new(key, value));
        return true;
    }

    /// <summary>Whether it has a key.</summary>
    public bool ContainsKey(object key) => _places.ContainsKey(key);

    /// <summary>The value of a key.</summary>
    public bool TryGetValue(object key, out object? value)
    {
        bool found = _places.TryGetValue(key, out int place);
        value = found ? _items[place].Value : null;
        return found;
    }

    /// <inheritdoc/>
    public IEnumerator<KeyValuePair<object, object?>> GetEnumerator() => _items.GetEnumerator();

    /// <inheritdoc/>
    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}
