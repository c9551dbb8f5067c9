namespace Mustafar.Models.Chat.Jinja;

// Values of a template: null is None; bool, long, double and string are themselves; the others are below.

/// <summary>A list or a tuple. Templates can't change either.</summary>
internal abstract class JinjaSequence(IReadOnlyList<object?> items)
{
    /// <summary>The elements.</summary>
    public IReadOnlyList<object?> Items { get; } = items;

    /// <summary>A sequence of the same kind.</summary>
    public abstract JinjaSequence With(IReadOnlyList<object?> items);
}

/// <summary>A list.</summary>
internal sealed class JinjaList(IReadOnlyList<object?> items) : JinjaSequence(items)
{
    /// <inheritdoc/>
    public override JinjaSequence With(IReadOnlyList<object?> items) => new JinjaList(items);
}

/// <summary>A tuple.</summary>
internal sealed class JinjaTuple(IReadOnlyList<object?> items) : JinjaSequence(items)
{
    /// <inheritdoc/>
    public override JinjaSequence With(IReadOnlyList<object?> items) => new JinjaTuple(items);
}

/// <summary>A dictionary in order of insertion.</summary>
internal sealed class JinjaDict
{
    /// <summary>Keys and values. Numbers that are equal are one key, as in Python.</summary>
    public DictItems Items { get; } = new(KeyComparer.Instance);

    /// <summary>A key as it is stored: None has to be something.</summary>
    /// <exception cref="JinjaException">A value of this type can't be a key.</exception>
    public static object Key(object? value) => value switch
    {
        null => NoneKey.Instance,
        string or bool or long or double => value,
        JinjaTuple tuple => new JinjaTuple([.. tuple.Items.Select(Key)]),
        _ => throw new JinjaException($"unhashable type: '{PythonText.TypeName(value)}'."),
    };

    /// <summary>A key as a value of the template.</summary>
    public static object? FromKey(object key) => key switch
    {
        NoneKey => null,
        JinjaTuple tuple => new JinjaTuple([.. tuple.Items.Select(item => FromKey(item!))]),
        _ => key,
    };

    private sealed class NoneKey
    {
        public static NoneKey Instance { get; } = new();
    }

    private sealed class KeyComparer : IEqualityComparer<object>
    {
        public static KeyComparer Instance { get; } = new();

        public new bool Equals(object? x, object? y) => (x, y) switch
        {
            (string a, string b) => a == b,
            (JinjaTuple a, JinjaTuple b) => a.Items.SequenceEqual(b.Items, this!),
            _ when Numbers.TryFloat(x, out double a) && Numbers.TryFloat(y, out double b) => a == b,
            _ => ReferenceEquals(x, y),
        };

        public int GetHashCode(object key) => key switch
        {
            string text => text.GetHashCode(StringComparison.Ordinal),
            JinjaTuple tuple => tuple.Items.Aggregate(17, (hash, item) => HashCode.Combine(hash, GetHashCode(item!))),
            _ => Numbers.TryFloat(key, out double number) ? number.GetHashCode() : 0,
        };
    }
}

/// <summary>What a filter such as <c>map</c> gives: elements that can be read once.</summary>
internal sealed class JinjaGenerator(IEnumerable<object?> items)
{
    private IEnumerable<object?> _items = items;

    /// <summary>The elements, at the first call; none later.</summary>
    public IEnumerable<object?> Take()
    {
        IEnumerable<object?> items = _items;
        _items = [];
        return items;
    }
}

/// <summary>What a name or key that isn't there gives.</summary>
/// <param name="Problem">What is not there.</param>
internal sealed record Undefined(string Problem)
{
    /// <summary>The error of using it.</summary>
    public JinjaException Error() => new(Problem);
}

/// <summary>A value with attributes of its own kind.</summary>
internal interface IHasAttributes
{
    /// <summary>Finds an attribute.</summary>
    bool TryGet(string name, out object? value);
}

/// <summary>A value that can be called.</summary>
internal interface ICallable
{
    /// <summary>Calls it.</summary>
    object? Call(Budget budget, Arguments arguments);
}

/// <summary>Arguments of a call.</summary>
/// <param name="Positional">Those without names.</param>
/// <param name="Named">Those with names.</param>
internal sealed record Arguments(IReadOnlyList<object?> Positional, IReadOnlyDictionary<string, object?> Named)
{
    /// <summary>No arguments.</summary>
    public static Arguments None { get; } = new([], new Dictionary<string, object?>());
}

/// <summary>What <c>namespace()</c> makes: attributes that templates can set, in loops too.</summary>
internal sealed class JinjaNamespace : IHasAttributes
{
    /// <summary>The attributes.</summary>
    public Dictionary<string, object?> Values { get; } = [];

    /// <inheritdoc/>
    public bool TryGet(string name, out object? value) => Values.TryGetValue(name, out value);
}
