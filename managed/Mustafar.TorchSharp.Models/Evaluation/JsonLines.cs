using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Evaluation;

/// <summary>Files with one JSON object per line.</summary>
internal static class JsonLines
{
    /// <summary>Reads the objects of a file, and skips empty lines.</summary>
    /// <param name="bytes">The file's contents.</param>
    /// <param name="path">Its path, for messages.</param>
    /// <param name="read">Converts an object; also gets its location, for messages.</param>
    /// <exception cref="CheckpointException">A line is not a JSON object.</exception>
    public static List<T> Read<T>(byte[] bytes, string path, Func<JsonElement, string, T> read)
    {
        List<T> items = [];
        int number = 0;
        for (int start = 0; start < bytes.Length; number++)
        {
            int end = Array.IndexOf(bytes, (byte)'\n', start) is >= 0 and int found ? found : bytes.Length;
            ReadOnlyMemory<byte> line = bytes.AsMemory(start, end - start);
            if (line.Span.ContainsAnyExcept(" \t\r"u8))
            {
                string place = $"{path}: line {number + 1}";
                using JsonDocument document = JsonFile.Parse(line, place);
                items.Add(read(document.RootElement, place));
            }

            start = end + 1;
        }

        return items;
    }
}
