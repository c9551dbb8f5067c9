using System.Collections;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Values of .NET and of JSON as values of a template.</summary>
internal static class JinjaValue
{
    /// <summary>Converts a value: null, true and false, numbers, strings, JSON, dictionaries with string keys, and sequences.</summary>
    /// <exception cref="ArgumentException">It is of another type, or a number is out of range.</exception>
    public static object? From(object? value) => value switch
    {
        null or string or bool or double or long => value,
        JinjaDict or JinjaSequence => value,
        int or short or byte or sbyte or ushort or uint => Convert.ToInt64(value, null),
        float number => (double)number,
        decimal number => (double)number,
        JsonElement json => From(json),
        JsonDocument document => From(document.RootElement),
        JsonNode node => From(JsonElement.Parse(node.ToJsonString())),
        IEnumerable<KeyValuePair<string, object?>> dict => Dict(dict.Select(pair => (pair.Key, From(pair.Value)))),
        IEnumerable list => new JinjaList([.. list.Cast<object?>().Select(From)]),
        _ => throw new ArgumentException($"Expected text, numbers, true or false, JSON, lists or dictionaries, but got {value.GetType().Name}.", nameof(value)),
    };

    /// <summary>A dictionary.</summary>
    public static JinjaDict Dict(IEnumerable<(string Key, object? Value)> items)
    {
        JinjaDict dict = new();
        foreach ((string key, object? value) in items)
        {
            dict.Items[key] = value;
        }

        return dict;
    }

    private static object? From(JsonElement json) => json.ValueKind switch
    {
        JsonValueKind.Object => Dict(json.EnumerateObject().Select(property => (property.Name, From(property.Value)))),
        JsonValueKind.Array => new JinjaList([.. json.EnumerateArray().Select(item => From(item))]),
        JsonValueKind.String => json.GetString(),
        JsonValueKind.Number => json.TryGetInt64(out long number) ? (object)number : json.GetDouble(),
        JsonValueKind.True => true,
        JsonValueKind.False => false,
        _ => null,
    };
}
