using System.Text.Json;
using System.Text.Unicode;

namespace Mustafar.Examples.Llama.Checkpoint;

/// <summary>
/// Whether all texts of a JSON document are Unicode. The parser doesn't look: it fails where a text is read, as an error of the program.
/// </summary>
internal static class JsonUnicode
{
    /// <summary>Checks a document.</summary>
    /// <param name="root">Its root.</param>
    /// <param name="text">What it was parsed from.</param>
    /// <param name="path">The file.</param>
    /// <exception cref="CheckpointException">A text has bytes that are not UTF-8, or half a surrogate pair.</exception>
    public static void Check(JsonElement root, ReadOnlySpan<byte> text, string path)
    {
        if (!Utf8.IsValid(text))
        {
            throw new CheckpointException("expected UTF-8, but there are bytes that are not.", path);
        }

        // Only an escape can be half a pair, and most files have none.
        if (text.IndexOf("\\ud"u8) >= 0 || text.IndexOf("\\uD"u8) >= 0)
        {
            Check(root, "", path);
        }
    }

    private static void Check(JsonElement value, string place, string path)
    {
        switch (value.ValueKind)
        {
            case JsonValueKind.Object:
                foreach (JsonProperty property in value.EnumerateObject())
                {
                    string name = Read(() => property.Name, place.Length == 0 ? "a key" : $"a key of '{place}'", path);
                    Check(property.Value, place.Length == 0 ? name : $"{place}.{name}", path);
                }

                break;
            case JsonValueKind.Array:
                int index = 0;
                foreach (JsonElement item in value.EnumerateArray())
                {
                    Check(item, $"{place}[{index++}]", path);
                }

                break;
            case JsonValueKind.String:
                Read(value.GetString, $"'{place}'", path);
                break;
        }
    }

    private static string Read(Func<string?> read, string what, string path)
    {
        try
        {
            return read()!;
        }
        catch (InvalidOperationException exception)
        {
            throw new CheckpointException($"expected Unicode as {what}, but it has half a surrogate pair.", path, inner: exception);
        }
    }
}
