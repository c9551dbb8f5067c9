using System.Buffers.Binary;
using System.Text.Json;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Checkpoint;

/// <summary>Reads and checks the header of a safetensors file.</summary>
/// <remarks>
/// A file is an 8-byte little-endian length, a JSON object of that length, and the data. The object maps names to a dtype, a shape and
/// the half-open range of bytes in the data; the ranges fill the data without gap or overlap.
/// </remarks>
internal static class SafetensorsHeader
{
    private const int LengthBytes = 8;

    // The reference implementation's limit; a larger number is a sign of a file of another kind.
    private const long LargestHeader = 100_000_000;

    /// <summary>Reads the header of a file.</summary>
    /// <param name="stream">The file, at its first byte.</param>
    /// <param name="path">Its path, for messages.</param>
    /// <exception cref="CheckpointException">The header is not valid, or the file's size is not what the header says.</exception>
    public static IReadOnlyDictionary<string, SafetensorsEntry> Read(Stream stream, string path)
    {
        long fileSize = stream.Length;
        if (fileSize < LengthBytes)
        {
            throw new CheckpointException($"expected a safetensors file of at least {LengthBytes} bytes, but it has {fileSize}.", path);
        }

        Span<byte> prefix = stackalloc byte[LengthBytes];
        stream.ReadExactly(prefix);
        ulong headerSize = BinaryPrimitives.ReadUInt64LittleEndian(prefix);
        if (headerSize > LargestHeader)
        {
            throw new CheckpointException(
                $"expected a safetensors header of at most {LargestHeader} bytes, but the file states {headerSize}; is it another format?", path);
        }

        long dataStart = LengthBytes + (long)headerSize;
        if (dataStart > fileSize)
        {
            throw new CheckpointException(
                $"expected a header of {headerSize} bytes, but the file ends after {fileSize - LengthBytes} of them; it is truncated.", path);
        }

        byte[] json = new byte[headerSize];
        stream.ReadExactly(json);
        using MemoryStream header = new(json, writable: false);
        using JsonDocument document = JsonFile.Parse(header, path);
        Dictionary<string, SafetensorsEntry> entries = [];
        foreach (JsonProperty property in document.RootElement.EnumerateObject())
        {
            if (property.Name == "__metadata__")
            {
                continue;
            }

            if (!entries.TryAdd(property.Name, ReadEntry(property, dataStart, path)))
            {
                throw new CheckpointException("expected each name once, but it occurs again.", path, property.Name);
            }
        }

        CheckRanges(entries.Values, dataStart, fileSize, path);
        return entries;
    }

    private static SafetensorsEntry ReadEntry(JsonProperty property, long dataStart, string path)
    {
        string name = property.Name;
        JsonElement value = property.Value;
        string dtypeName = value.FindString("dtype", path) ?? throw new CheckpointException("expected a dtype, but it has none.", path, name);
        (ScalarType dtype, int elementSize) = dtypeName switch
        {
            "F64" => (ScalarType.Float64, 8),
            "F32" => (ScalarType.Float32, 4),
            "F16" => (ScalarType.Float16, 2),
            "BF16" => (ScalarType.BFloat16, 2),
            "I64" => (ScalarType.Int64, 8),
            "I32" => (ScalarType.Int32, 4),
            "I16" => (ScalarType.Int16, 2),
            "I8" => (ScalarType.Int8, 1),
            "U8" => (ScalarType.Byte, 1),
            "BOOL" => (ScalarType.Bool, 1),
            _ => throw new CheckpointException(
                $"expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL, but got '{dtypeName}'.", path, name),
        };

        long[] shape = ReadNumbers(value, "shape", path, name);
        long[] range = ReadNumbers(value, "data_offsets", path, name);
        if (range.Length != 2 || range[0] > range[1])
        {
            throw new CheckpointException($"expected data_offsets [begin, end], but got [{string.Join(", ", range)}].", path, name);
        }

        long expected;
        try
        {
            expected = shape.Aggregate((long)elementSize, (product, size) => checked(product * size));
        }
        catch (OverflowException exception)
        {
            throw new CheckpointException($"its shape [{string.Join(", ", shape)}] is larger than any file.", path, name, exception);
        }

        return expected == range[1] - range[0]
            ? new SafetensorsEntry(name, dtype, shape, dataStart + range[0], expected)
            : throw new CheckpointException(
                $"expected {expected} bytes for {dtypeName} [{string.Join(", ", shape)}], but data_offsets span {range[1] - range[0]}.", path, name);
    }

    private static long[] ReadNumbers(JsonElement parent, string key, string path, string tensor)
    {
        if (parent.Find(key) is not { ValueKind: JsonValueKind.Array } array)
        {
            throw new CheckpointException($"expected an array '{key}', but it has none.", path, tensor);
        }

        long[] numbers = new long[array.GetArrayLength()];
        for (int i = 0; i < numbers.Length; i++)
        {
            JsonElement item = array[i];
            if (item.ValueKind != JsonValueKind.Number || !item.TryGetInt64(out numbers[i]) || numbers[i] < 0)
            {
                throw new CheckpointException($"expected whole numbers from 0 in '{key}', but got {item.GetRawText()}.", path, tensor);
            }
        }

        return numbers;
    }

    private static void CheckRanges(IEnumerable<SafetensorsEntry> entries, long dataStart, long fileSize, string path)
    {
        long end = dataStart;
        foreach (SafetensorsEntry entry in entries.OrderBy(entry => entry.Offset).ThenBy(entry => entry.ByteCount))
        {
            if (entry.Offset != end)
            {
                string problem = entry.Offset < end ? "overlaps the tensor before it" : "leaves a gap to the tensor before it";
                throw new CheckpointException(
                    $"expected its data at byte {end - dataStart}, but it starts at {entry.Offset - dataStart} and {problem}.", path, entry.Name);
            }

            // The range may be as large as the numbers in the header allow, so the sum is not formed before it is known to fit.
            if (entry.ByteCount > fileSize - end)
            {
                throw new CheckpointException(
                    $"expected {entry.ByteCount} bytes at byte {entry.Offset}, but the file ends after {fileSize - end} of them; it is truncated.",
                    path,
                    entry.Name);
            }

            end += entry.ByteCount;
        }

        if (end != fileSize)
        {
            throw new CheckpointException($"expected {end} bytes, as the header says, but the file has {fileSize}.", path);
        }
    }
}
