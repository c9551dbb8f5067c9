using System.Globalization;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Tests.Damage;

/// <summary>JSON that is still JSON, but says something else: other values, kinds, names and nestings.</summary>
internal sealed class DamagedJson
{
    private const int DeepestNesting = 3000;

    private static readonly JsonSerializerOptions s_asItIs = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping, MaxDepth = 2 * DeepestNesting };

    private readonly JsonNode _original;
    private readonly List<string> _names = [];
    private readonly List<string> _texts = ["", " ", "\0", "\ufeff", "é", "\ud83d\ude00", "<0x41>", "(a+)+$", "[", "\\p{L}+", "{{", "{% if", "$1"];

    internal DamagedJson(string text)
    {
        _original = JsonNode.Parse(text)!;
        Collect(_original);
    }

    /// <summary>The text of a copy with one to three changes.</summary>
    /// <param name="random">What decides.</param>
    internal string Change(Random random)
    {
        JsonNode root = _original.DeepClone();
        for (int changes = random.Next(1, 4); changes > 0; changes--)
        {
            JsonNode? node = root;
            while (node is JsonObject or JsonArray && Children(node) is { Count: > 0 } children)
            {
                int index = random.Next(children.Count);
                JsonNode? child = children[index].Value;
                if (child is not (JsonObject or JsonArray) || random.Next(4) == 0)
                {
                    ChangeChild(node, index, children[index].Key, random);
                    break;
                }

                node = child;
            }
        }

        return root.ToJsonString(s_asItIs);
    }

    private void ChangeChild(JsonNode parent, int index, string key, Random random)
    {
        if (parent is JsonArray array)
        {
            switch (random.Next(4))
            {
                case 0:
                    array.RemoveAt(index);
                    break;
                case 1:
                    array.Insert(random.Next(array.Count + 1), array[index]?.DeepClone());
                    break;
                default:
                    array[index] = Changed(array[index], random);
                    break;
            }

            return;
        }

        JsonObject members = parent.AsObject();
        JsonNode? value = members[key];
        switch (random.Next(6))
        {
            case 0:
                members.Remove(key);
                break;
            case 1:
                members.Remove(key);
                members[Pick(_names, random)] = value;
                break;
            case 2:
                members[Pick(_names, random)] = Changed(value, random);
                break;
            default:
                members[key] = Changed(value, random);
                break;
        }
    }

    private JsonNode? Changed(JsonNode? value, Random random) => random.Next(9) switch
    {
        0 => null,
        1 => random.Next(2) == 0,
        2 => Number(random),
        3 => Pick(_texts, random),
        4 => new JsonArray(value?.DeepClone()),
        5 => new JsonObject { [Pick(_names, random)] = value?.DeepClone() },
        6 when random.Next(20) == 0 => Nested(random.Next(DeepestNesting)),
        _ when value is JsonValue scalar && scalar.TryGetValue(out string? text) => Text(text, random),
        _ when value is JsonValue scalar && scalar.TryGetValue(out double number) && double.IsFinite(number) => number + random.Next(-2, 3),
        _ => new JsonArray(),
    };

    private string Text(string text, Random random) => random.Next(4) switch
    {
        0 => text + Pick(_texts, random),
        1 => text[..random.Next(text.Length + 1)],
        2 => text.ToUpperInvariant(),
        _ => string.Concat(Enumerable.Repeat(text, random.Next(2, 40))),
    };

    private static JsonNode Number(Random random) => random.Next(8) switch
    {
        0 => 0,
        1 => -random.Next(),
        2 => random.Next(),
        3 => random.Next(-4, 70000),
        4 => long.MaxValue - random.Next(2),
        5 => double.MaxValue,
        6 => random.NextDouble(),
        _ => JsonNode.Parse("1" + new string('0', random.Next(1, 400)))!,
    };

    private static JsonNode Nested(int depth)
    {
        JsonNode node = new JsonArray();
        for (int i = 0; i < depth; i++)
        {
            node = i % 2 == 0 ? new JsonArray(node) : new JsonObject { ["a"] = node };
        }

        return node;
    }

    private void Collect(JsonNode? node)
    {
        if (node is JsonValue value && value.GetValueKind() == JsonValueKind.String)
        {
            _texts.Add(value.GetValue<string>());
        }
        else if (node is JsonObject or JsonArray)
        {
            foreach ((string key, JsonNode? child) in Children(node))
            {
                _names.Add(key);
                Collect(child);
            }
        }
    }

    private static List<KeyValuePair<string, JsonNode?>> Children(JsonNode node) => node is JsonObject members
        ? [.. members]
        : [.. node.AsArray().Select((child, i) => KeyValuePair.Create(i.ToString(CultureInfo.InvariantCulture), child))];

    private static string Pick(List<string> from, Random random) => from[random.Next(from.Count)];
}
