using System.Buffers.Binary;
using System.Text.Json;
using static TorchSharp.torch;

namespace Mustafar.Storage;

/// <summary>The header of a safetensors file: its tensors, and the writer's metadata.</summary>
/// <remarks>
/// A file is an 8-byte little-endian length, a JSON object of that length, and the data. The object maps names to a dtype, a shape and
/// the half-open range of bytes in the data; the ranges fill the data without gap or overlap. <c>__metadata__</c> maps strings to
/// strings.
/// </remarks>
public sealed class SafetensorsHeader
{
    private const int LengthBytes = 8;

    // The reference implementation's limit; a larger number suggests a file of another kind.
    private const long LargestHeader = 100_000_000;

    private const string MetadataKey = "__metadata__";

    private SafetensorsHeader(
        IReadOnlyDictionary<string, SafetensorsEntry> tensors, IReadOnlyDictionary<string, string> metadata, long dataOffset)
    {
        Tensors = tensors;
        Metadata = metadata;
        DataOffset = dataOffset;
    }

    /// <summary>The tensors by name.</summary>
    public IReadOnlyDictionary<string, SafetensorsEntry> Tensors { get; }

    /// <summary>The metadata; empty if there are none.</summary>
    public IReadOnlyDictionary<string, string> Metadata { get; }

    /// <summary>The first byte of the data, relative to the file's first.</summary>
    public long DataOffset { get; }

    /// <summary>Reads and checks the header of a file.</summary>
    /// <param name="stream">The whole file, at its first byte.</param>
    /// <exception cref="SafetensorsException">The header is not valid, or the file's size is not what the header says.</exception>
    public static SafetensorsHeader Read(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        long fileSize = stream.Length;
        byte[] json = ReadJson(stream, fileSize);
        long dataOffset = LengthBytes + json.Length;
        try
        {
            using JsonDocument document = JsonDocument.Parse(json);
            JsonElement root = document.RootElement;
            if (root.ValueKind != JsonValueKind.Object)
            {
                throw new SafetensorsException($"expected a JSON object as header, but it is {JsonKind.Describe(root.ValueKind)}.");
            }

            (Dictionary<string, SafetensorsEntry> tensors, Dictionary<string, string>? metadata) = ([], null);
            foreach (JsonProperty property in root.EnumerateObject())
            {
                bool isNew = property.Name == MetadataKey
                    ? metadata is null && (metadata = ReadMetadata(property.Value)) is not null
                    : tensors.TryAdd(property.Name, ReadEntry(property, dataOffset));
                if (!isNew)
                {
                    throw new SafetensorsException("expected each name once, but this one occurs twice.", property.Name);
                }
            }

            CheckRanges(tensors.Values, dataOffset, fileSize);
            return new SafetensorsHeader(tensors, metadata ?? [], dataOffset);
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException)
        {
            // The latter comes from strings that are not Unicode.
            throw new SafetensorsException($"expected JSON as header, but {exception.Message}", innerException: exception);
        }
    }

    /// <summary>The bytes before the data of a file.</summary>
    /// <param name="metadata">Metadata, in the order in which they are written.</param>
    /// <param name="tensors">Names, types and shapes of the tensors, in the order of their data.</param>
    internal static byte[] Encode(
        IEnumerable<KeyValuePair<string, string>> metadata, IEnumerable<(string Name, ScalarType DType, long[] Shape)> tensors)
    {
        using MemoryStream stream = new();
        stream.Write(stackalloc byte[LengthBytes]);
        using (Utf8JsonWriter writer = new(stream))
        {
            writer.WriteStartObject();
            writer.WriteStartObject(MetadataKey);
            foreach ((string key, string value) in metadata)
            {
                writer.WriteString(key, value);
            }

            writer.WriteEndObject();
            long offset = 0;
            foreach ((string name, ScalarType dtype, long[] shape) in tensors)
            {
                (string dtypeName, int size) = SafetensorsTypes.Of(dtype);
                long end = checked(offset + ByteCount(shape, size));
                writer.WriteStartObject(name);
                writer.WriteString("dtype", dtypeName);
                WriteNumbers(writer, "shape", shape);
                WriteNumbers(writer, "data_offsets", [offset, end]);
                writer.WriteEndObject();
                offset = end;
            }

            writer.WriteEndObject();
        }

        // Like the reference implementation, so that the data is aligned.
        while (stream.Length % LengthBytes != 0)
        {
            stream.WriteByte((byte)' ');
        }

        byte[] header = stream.ToArray();
        BinaryPrimitives.WriteInt64LittleEndian(header, header.Length - LengthBytes);
        return header;
    }

    private static byte[] ReadJson(Stream stream, long fileSize)
    {
        if (fileSize < LengthBytes)
        {
            throw new SafetensorsException($"expected a safetensors file of at least {LengthBytes} bytes, but it has {fileSize}.");
        }

        Span<byte> prefix = stackalloc byte[LengthBytes];
        stream.ReadExactly(prefix);
        ulong size = BinaryPrimitives.ReadUInt64LittleEndian(prefix);
        if (size > LargestHeader)
        {
            throw new SafetensorsException(
                $"expected a safetensors header of at most {LargestHeader} bytes, but the file declares {size}; is it in another format?");
        }

        if ((long)size > fileSize - LengthBytes)
        {
            throw new SafetensorsException(
                $"expected a header of {size} bytes, but the file ends after {fileSize - LengthBytes} of them; it is truncated.");
        }

        byte[] json = new byte[size];
        stream.ReadExactly(json);
        return json;
    }

    private static Dictionary<string, string> ReadMetadata(JsonElement value)
    {
        if (value.ValueKind != JsonValueKind.Object)
        {
            throw new SafetensorsException($"expected an object '{MetadataKey}', but it is {JsonKind.Describe(value.ValueKind)}.");
        }

        Dictionary<string, string> metadata = [];
        foreach (JsonProperty property in value.EnumerateObject())
        {
            if (property.Value.ValueKind != JsonValueKind.String)
            {
                throw new SafetensorsException(
                    $"expected strings in '{MetadataKey}', but '{property.Name}' is {JsonKind.Describe(property.Value.ValueKind)}.");
            }

            if (!metadata.TryAdd(property.Name, property.Value.GetString()!))
            {
                throw new SafetensorsException($"expected each key of '{MetadataKey}' once, but '{property.Name}' occurs twice.");
            }
        }

        return metadata;
    }

    private static SafetensorsEntry ReadEntry(JsonProperty property, long dataOffset)
    {
        string name = property.Name;
        JsonElement value = property.Value;
        if (value.ValueKind != JsonValueKind.Object)
        {
            throw new SafetensorsException($"expected an object, but it is {JsonKind.Describe(value.ValueKind)}.", name);
        }

        string dtypeName = value.TryGetProperty("dtype", out JsonElement dtype) && dtype.ValueKind == JsonValueKind.String
            ? dtype.GetString()!
            : throw new SafetensorsException("expected a dtype, but it has none.", name);
        (ScalarType type, int elementSize) = SafetensorsTypes.Find(dtypeName)
            ?? throw new SafetensorsException($"expected one of the dtypes {SafetensorsTypes.Names}, but got '{dtypeName}'.", name);
        long[] shape = ReadNumbers(value, "shape", name);
        long[] range = ReadNumbers(value, "data_offsets", name);
        if (range.Length != 2 || range[0] > range[1])
        {
            throw new SafetensorsException($"expected data_offsets [begin, end], but got [{string.Join(", ", range)}].", name);
        }

        long expected;
        try
        {
            expected = ByteCount(shape, elementSize);
        }
        catch (OverflowException exception)
        {
            throw new SafetensorsException($"its shape [{string.Join(", ", shape)}] is larger than any file.", name, exception);
        }

        return expected == range[1] - range[0]
            ? new SafetensorsEntry(name, type, shape, dataOffset + range[0], expected)
            : throw new SafetensorsException(
                $"expected {expected} bytes for {dtypeName} [{string.Join(", ", shape)}], but data_offsets span {range[1] - range[0]}.", name);
    }

    private static long[] ReadNumbers(JsonElement parent, string key, string tensor)
    {
        if (!parent.TryGetProperty(key, out JsonElement array) || array.ValueKind != JsonValueKind.Array)
        {
            throw new SafetensorsException($"expected an array '{key}', but it has none.", tensor);
        }

        long[] numbers = new long[array.GetArrayLength()];
        for (int i = 0; i < numbers.Length; i++)
        {
            JsonElement item = array[i];
            if (item.ValueKind != JsonValueKind.Number || !item.TryGetInt64(out numbers[i]) || numbers[i] < 0)
            {
                string got = item.ValueKind == JsonValueKind.Number ? item.GetRawText() : JsonKind.Describe(item.ValueKind);
                throw new SafetensorsException($"expected whole numbers of at least 0 in '{key}', but got {got}.", tensor);
            }
        }

        return numbers;
    }

    private static void CheckRanges(IEnumerable<SafetensorsEntry> entries, long dataOffset, long fileSize)
    {
        long end = dataOffset;
        foreach (SafetensorsEntry entry in entries.OrderBy(entry => entry.Offset).ThenBy(entry => entry.ByteCount))
        {
            if (entry.Offset != end)
            {
                string problem = entry.Offset < end ? "overlaps the tensor before it" : "leaves a gap to the tensor before it";
                throw new SafetensorsException(
                    $"expected its data at byte {end - dataOffset}, but it starts at {entry.Offset - dataOffset} and {problem}.", entry.Name);
            }

            // The range may be as large as the numbers in the header allow, so the sum is only formed once it is known to fit.
            if (entry.ByteCount > fileSize - end)
            {
                throw new SafetensorsException(
                    $"expected {entry.ByteCount} bytes at byte {entry.Offset}, but the file ends after {fileSize - end} of them; it is truncated.",
                    entry.Name);
            }

            end += entry.ByteCount;
        }

        if (end != fileSize)
        {
            throw new SafetensorsException($"expected {end} bytes, as the header says, but the file has {fileSize}.");
        }
    }

    private static void WriteNumbers(Utf8JsonWriter writer, string key, ReadOnlySpan<long> numbers)
    {
        writer.WriteStartArray(key);
        foreach (long number in numbers)
        {
            writer.WriteNumberValue(number);
        }

        writer.WriteEndArray();
    }

    private static long ByteCount(long[] shape, int elementSize) =>
        shape.Aggregate((long)elementSize, (product, size) => checked(product * size));
}
