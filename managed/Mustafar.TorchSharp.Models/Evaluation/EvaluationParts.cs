using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Evaluation;

/// <summary>The finished parts of a unit, in a file with one line per part.</summary>
internal sealed class EvaluationParts : IDisposable
{
    private readonly FileStream _file;
    private readonly List<(JsonNode Result, double Seconds)> _done = [];

    private EvaluationParts(FileStream file) => _file = file;

    /// <summary>The results of the parts, in order.</summary>
    public IReadOnlyList<JsonNode> Results => [.. _done.Select(part => part.Result)];

    /// <summary>How long the parts took, in seconds.</summary>
    public double Seconds => _done.Sum(part => part.Seconds);

    /// <summary>Reads a file up to the first line that is incomplete or invalid, and truncates it there.</summary>
    /// <exception cref="IOException">Another process has it open.</exception>
    public static EvaluationParts Open(string path)
    {
        EvaluationParts parts = new(new FileStream(path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None));
        try
        {
            parts.Read();
            return parts;
        }
        catch
        {
            parts.Dispose();
            throw;
        }
    }

    /// <summary>Adds a part and flushes it to disk.</summary>
    public void Add(JsonNode result, double seconds)
    {
        JsonObject part = new() { ["seconds"] = seconds, ["result"] = result.DeepClone() };
        byte[] line = Encoding.UTF8.GetBytes(part.ToJsonString() + "\n");
        _file.Write(line);
        _file.Flush(flushToDisk: true);

        // Parse the line as a later run would.
        Parse(line);
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();

    private void Read()
    {
        byte[] bytes = new byte[_file.Length];
        _file.ReadExactly(bytes);
        int start = 0;
        for (int end; (end = Array.IndexOf(bytes, (byte)'\n', start)) >= 0 && Parse(bytes.AsSpan(start, end - start)); start = end + 1)
        {
        }

        _file.SetLength(start);
        _file.Position = start;
    }

    private bool Parse(ReadOnlySpan<byte> line)
    {
        try
        {
            if (JsonNode.Parse(line) is not JsonObject part || part["result"] is not JsonNode result || part["seconds"] is not JsonValue seconds)
            {
                return false;
            }

            _done.Add((result, (double)seconds));
            return true;
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException or FormatException)
        {
            return false;
        }
    }
}
