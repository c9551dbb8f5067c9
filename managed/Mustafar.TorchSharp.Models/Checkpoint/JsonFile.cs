using System.Buffers;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Unicode;
using Mustafar.Storage;

namespace Mustafar.Models.Checkpoint;

/// <summary>Reads the JSON files of a checkpoint, with errors that name the file and the key.</summary>
internal static class JsonFile
{
    // Far above any file of a checkpoint (tokenizer.json of a large vocabulary has some 30 MB), and below what one array can hold.
    private const long LargestFile = 1L << 28;

    private const int LongestQuote = 60;

    private static readonly JsonWriterOptions s_quote = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>Parses a file whose root is an object.</summary>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">It is not a regular file, too large, a Git LFS pointer, or not a JSON object; or a text in it
    /// is not Unicode.</exception>
    public static JsonDocument Open(string path) => Parse(CheckpointFile.ReadAllBytes(path, LargestFile), path);

    /// <summary>Parses a text whose root is an object.</summary>
    /// <exception cref="CheckpointException">It is not a JSON object; or a text in it is not Unicode.</exception>
    public static JsonDocument Parse(ReadOnlyMemory<byte> text, string path)
    {
        LfsPointer.ThrowIfPointer(text.Span, path);
        if (!Utf8.IsValid(text.Span))
        {
            // The parser doesn't check: it fails where such a string is read, as an error of the program.
            throw new CheckpointException("expected UTF-8, but some bytes are not.", path);
        }

        text = text.Span.StartsWith(Encoding.UTF8.Preamble) ? text[Encoding.UTF8.Preamble.Length..] : text;
        JsonDocument document;
        try
        {
            JsonStrings.RequireWholePairs(text.Span, path);
            document = JsonDocument.Parse(text);
        }
        catch (JsonException exception)
        {
            throw new CheckpointException($"expected JSON, but {exception.Message}", path, innerException: exception);
        }

        if (document.RootElement.ValueKind == JsonValueKind.Object)
        {
            return document;
        }

        JsonValueKind kind = document.RootElement.ValueKind;
        document.Dispose();
        throw new CheckpointException($"expected a JSON object, but the root is {JsonKind.Describe(kind)}.", path);
    }

    /// <summary>A value as a message quotes it: on one line, and shortened if it is long.</summary>
    public static string Quote(this JsonElement value)
    {
        ArrayBufferWriter<byte> bytes = new();
        using (Utf8JsonWriter writer = new(bytes, s_quote))
        {
            value.WriteTo(writer);
        }

        string text = Encoding.UTF8.GetString(bytes.WrittenSpan);
        return text.Length > LongestQuote ? text[..LongestQuote] + "…" : text;
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
            ?? throw new CheckpointException($"expected {JsonKind.Describe(kind)} '{key}', but the key is absent.", path);
        return value.ValueKind == kind ? value : throw Wrong(key, JsonKind.Describe(kind), value, path);
    }

    /// <summary>Whether a value is a given number.</summary>
    public static bool IsNumber(this JsonElement value, double expected) =>
        value.ValueKind == JsonValueKind.Number && value.GetDouble() == expected;

    private static CheckpointException Wrong(string key, string expected, JsonElement value, string path) =>
        new($"expected {expected} as '{key}', but got {value.Quote()}.", path);
}
