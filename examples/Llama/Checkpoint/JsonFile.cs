using System.Text;
using System.Text.Json;

namespace Mustafar.Examples.Llama.Checkpoint;

/// <summary>Reads the JSON files of a checkpoint, with errors that name the file and the key.</summary>
internal static class JsonFile
{
    /// <summary>Parses a file whose root is an object.</summary>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">It is a Git LFS pointer or not a JSON object.</exception>
    public static JsonDocument Open(string path)
    {
        if (!File.Exists(path))
        {
            throw new FileNotFoundException($"{path}: the file doesn't exist.", path);
        }

        LfsPointer.ThrowIfPointer(path);
        using FileStream stream = File.OpenRead(path);
        return Parse(stream, path);
    }

    /// <summary>Parses a text whose root is an object.</summary>
    /// <exception cref="CheckpointException">It is not a JSON object.</exception>
    public static JsonDocument Parse(Stream stream, string path)
    {
        using MemoryStream buffer = new();
        stream.CopyTo(buffer);
        ReadOnlyMemory<byte> content = buffer.ToArray();
        content = content.Span.StartsWith(Encoding.UTF8.Preamble) ? content[Encoding.UTF8.Preamble.Length..] : content;
        JsonDocument document;
        try
        {
            document = JsonDocument.Parse(content);
            JsonStrings.RequireWholePairs(content.Span, path);
        }
        catch (JsonException exception)
        {
            throw new CheckpointException($"expected JSON, but {exception.Message}", path, inner: exception);
        }

        if (document.RootElement.ValueKind == JsonValueKind.Object)
        {
            return document;
        }

        JsonValueKind kind = document.RootElement.ValueKind;
        document.Dispose();
        throw new CheckpointException($"expected a JSON object, but the root is {Describe(kind)}.", path);
    }

    /// <summary>The value of a key, or null if the key is absent or its value is null.</summary>
    public static JsonElement? Find(this JsonElement parent, string key) =>
        parent.ValueKind == JsonValueKind.Object && parent.TryGetProperty(key, out JsonElement value) && value.ValueKind != JsonValueKind.Null
            ? value
            : null;

    /// <summary>The value of a key as a string, or null if it is absent.</summary>
    /// <exception cref="CheckpointException">It is not a string.</exception>
    public static string? FindString(this JsonElement parent, string key, string path) => parent.Find(key) switch
    {
        null => null,
        { ValueKind: JsonValueKind.String } value => value.GetString(),
        { } value => throw Wrong(key, "a string", value, path),
    };

    /// <summary>The value of a key as an integer, or null if it is absent.</summary>
    /// <exception cref="CheckpointException">It is not an integer.</exception>
    public static int? FindInt32(this JsonElement parent, string key, string path) => parent.Find(key) switch
    {
        null => null,
        { ValueKind: JsonValueKind.Number } value when value.TryGetInt32(out int number) => number,
        { } value => throw Wrong(key, "an integer", value, path),
    };

    /// <summary>The value of a key as a number, or null if it is absent.</summary>
    /// <exception cref="CheckpointException">It is not a number.</exception>
    public static double? FindDouble(this JsonElement parent, string key, string path) => parent.Find(key) switch
    {
        null => null,
        { ValueKind: JsonValueKind.Number } value => value.GetDouble(),
        { } value => throw Wrong(key, "a number", value, path),
    };

    /// <summary>The value of a key as true or false, or null if it is absent.</summary>
    /// <exception cref="CheckpointException">It is neither.</exception>
    public static bool? FindBoolean(this JsonElement parent, string key, string path) => parent.Find(key) switch
    {
        null => null,
        { ValueKind: JsonValueKind.True } => true,
        { ValueKind: JsonValueKind.False } => false,
        { } value => throw Wrong(key, "true or false", value, path),
    };

    /// <summary>The value of a key as an integer.</summary>
    /// <exception cref="CheckpointException">It is absent or not an integer.</exception>
    public static int RequireInt32(this JsonElement parent, string key, string path) =>
        parent.FindInt32(key, path) ?? throw new CheckpointException($"expected an integer '{key}', but the key is absent.", path);

    /// <summary>The value of a key of a given kind.</summary>
    /// <exception cref="CheckpointException">It is absent or of another kind.</exception>
    public static JsonElement Require(this JsonElement parent, string key, JsonValueKind kind, string path)
    {
        JsonElement value = parent.Find(key)
            ?? throw new CheckpointException($"expected {Describe(kind)} '{key}', but the key is absent.", path);
        return value.ValueKind == kind ? value : throw Wrong(key, Describe(kind), value, path);
    }

    /// <summary>Whether a value is a given number.</summary>
    public static bool IsNumber(this JsonElement value, double expected) =>
        value.ValueKind == JsonValueKind.Number && value.GetDouble() == expected;

    /// <summary>A kind of JSON value in words.</summary>
    public static string Describe(JsonValueKind kind) => kind switch
    {
        JsonValueKind.Object => "an object",
        JsonValueKind.Array => "an array",
        JsonValueKind.String => "a string",
        JsonValueKind.Number => "a number",
        JsonValueKind.True or JsonValueKind.False => "true or false",
        _ => "null",
    };

    private static CheckpointException Wrong(string key, string expected, JsonElement value, string path)
    {
        string text = value.GetRawText();
        return new CheckpointException($"expected {expected} as '{key}', but got {(text.Length > 60 ? text[..60] + "…" : text)}.", path);
    }
}
