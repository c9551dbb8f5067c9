using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using Mustafar.Storage;

namespace Mustafar;

/// <summary>Writes caches to a file, one page at a time.</summary>
/// <param name="layers">What each layer stores.</param>
/// <param name="transfer">Tracks the progress.</param>
internal sealed class CacheFileWriter(IReadOnlyList<StoredLayer> layers, FileTransfer transfer)
{
    /// <summary>Writes a whole file to a stream, from its current position.</summary>
    /// <param name="stream">The stream. If it can't seek, the checksum is computed first, which visits everything twice.</param>
    /// <param name="fingerprint">Text that identifies the model.</param>
    /// <param name="metadata">Additional metadata to store.</param>
    internal void Write(Stream stream, string fingerprint, IReadOnlyDictionary<string, string> metadata)
    {
        (CacheTables Tables, int[] Pages)[] contents = [.. layers.Select(layer => CacheTables.Of(layer.Store, layer.Slots))];
        CacheFileTensor[] tensors = [.. layers.SelectMany((layer, i) =>
            CacheFileFormat.Tensors(
                CacheFileFormat.Version, layer, i, contents[i].Pages.Length, contents[i].Tables.PageIndices.Length, layer.Storage.RecentQueries?.Heads ?? 0))];
        byte[] header = SafetensorsHeader.Encode(
            [
                new(FileChecksum.Key, FileChecksum.Blank),
                .. CacheFileFormat.Describe(CacheFileFormat.Version, layers, fingerprint),
                .. metadata.Select(item => new KeyValuePair<string, string>(CacheFileFormat.UserPrefix + item.Key, item.Value)),
            ],
            tensors.Select(tensor => (tensor.Name, tensor.DType, tensor.Shape)));
        long bytes = header.Length + tensors.Sum(tensor =>
            tensor.Shape.Aggregate((long)SafetensorsTypes.Of(tensor.DType).Size, (product, size) => checked(product * size)));
        int digits = FileChecksum.Find(header);
        transfer.Begin(stream.CanSeek ? bytes : 2 * bytes);
        if (stream.CanSeek)
        {
            long start = stream.Position;
            byte[] checksum = WriteAll(stream, header, contents);
            long end = stream.Position;
            stream.Position = start + digits;
            stream.Write(checksum);
            stream.Position = end;
        }
        else
        {
            WriteAll(Stream.Null, header, contents).CopyTo(header, digits);
            _ = WriteAll(stream, header, contents);
        }
    }

    // Returns the digits of the checksum of what it wrote.
    private byte[] WriteAll(Stream stream, byte[] header, (CacheTables Tables, int[] Pages)[] contents)
    {
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        Put(header);
        for (int i = 0; i < layers.Count; i++)
        {
            Write(layers[i], contents[i].Tables, contents[i].Pages, Put);
        }

        return Encoding.ASCII.GetBytes(Convert.ToHexString(hash.GetHashAndReset()));

        void Put(Span<byte> part)
        {
            transfer.Advance(part.Length);
            hash.AppendData(part);
            stream.Write(part);
        }
    }

    private static void Write(StoredLayer layer, CacheTables tables, int[] pages, LayerStorage.Visitor put)
    {
        foreach (int[] table in (int[][])[tables.Lengths, tables.Compressed, tables.Released, tables.Sinks, tables.PageIndices])
        {
            put(MemoryMarshal.AsBytes(table.AsSpan()));
        }

        layer.Storage.VisitPages(keys: true, CacheFileFormat.Version, pages, fill: false, put);
        layer.Storage.VisitPages(keys: false, CacheFileFormat.Version, pages, fill: false, put);
        layer.VisitWindow(keys: true, tables, fill: false, put);
        layer.VisitWindow(keys: false, tables, fill: false, put);
        if (layer.Options.SinkTokens > 0)
        {
            layer.VisitSinks(keys: true, tables, fill: false, put);
            layer.VisitSinks(keys: false, tables, fill: false, put);
        }

        if (layer.Options.KeyChannelScales)
        {
            layer.VisitKeyScales(tables, fill: false, put);
        }

        foreach ((_, TorchSharp.torch.Tensor sums) in layer.Statistics)
        {
            layer.VisitStatistics(sums, tables, fill: false, put);
        }

        if (layer.Storage.RecentQueries is RecentQueries queries)
        {
            put(MemoryMarshal.AsBytes(queries.Counts(layer.Slots).AsSpan()));
            using TorchSharp.torch.Tensor padded = queries.Padded(layer.Slots, layer.Shape);
            if (queries.Heads > 0)
            {
                put(padded.bytes);
            }
        }
    }
}
