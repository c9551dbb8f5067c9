using System.Text;
using System.Text.Json;

namespace Mustafar.Models.Checkpoint;

/// <summary>Finds strings of a JSON text that can't become .NET strings: half a surrogate pair, escaped as \ud800.</summary>
internal static class JsonStrings
{
    private const int CharactersInMessage = 60;

    /// <summary>Checks all keys and strings.</summary>
    /// <param name="content">A valid JSON text.</param>
    /// <param name="path">Its file.</param>
    /// <exception cref="CheckpointException">One has half a surrogate pair.</exception>
    public static void RequireWholePairs(ReadOnlySpan<byte> content, string path)
    {
        if (content.IndexOf("\\ud"u8) < 0 && content.IndexOf("\\uD"u8) < 0)
        {
            return;
        }

        Utf8JsonReader reader = new(content);
        string key = "";
        while (reader.Read())
        {
            if (reader.TokenType is not (JsonTokenType.PropertyName or JsonTokenType.String))
            {
                continue;
            }

            string text;
            try
            {
                text = reader.GetString()!;
            }
            catch (InvalidOperationException exception)
            {
                string raw = Encoding.UTF8.GetString(reader.ValueSpan);
                string shown = raw.Length > CharactersInMessage ? raw[..CharactersInMessage] + "…" : raw;
                string what = reader.TokenType == JsonTokenType.PropertyName ? $"a key after '{key}'" : $"'{key}'";
                throw new CheckpointException(
                    $"expected whole characters in {what}, but got half a surrogate pair in \"{shown}\".", path, innerException: exception);
            }

            key = reader.TokenType == JsonTokenType.PropertyName ? text : key;
        }
    }
}
