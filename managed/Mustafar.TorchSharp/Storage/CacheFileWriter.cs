using System.Runtime.InteropServices;
using System.Text;
using Mustafar.Storage;

namespace Mustafar;

/// <summary>Writes caches to a file, a page at a time.</summary>
internal static class CacheFileWriter
{
    /// <summary>Writes a whole file to an empty stream.</summary>
    internal static void Write(
        FileStream stream, IReadOnlyList<StoredLayer> layers, string fingerprint, IReadOnlyDictionary<string, string> metadata)
    {
        (CacheTables Tables, int[] Pages)[] contents = [.. layers.Select(layer => CacheTables.Of(layer.Store, layer.Slots))];
        byte[] header = SafetensorsHeader.Encode(
            [
                new(FileChecksum.Key, FileChecksum.Blank),
                .. CacheFileFormat.Describe(CacheFileFormat.Version, layers, fingerprint),
                .. metadata.Select(item => new KeyValuePair<string, string>(CacheFileFormat.UserPrefix + item.Key, item.Value)),
            ],
            layers
                .SelectMany((layer, i) => CacheFileFormat.Tensors(CacheFileFormat.Version, layer, i, contents[i].Pages.Length, contents[i].Tables.PageIndices.Length))
                .Select(tensor => (tensor.Name, tensor.DType, tensor.Shape)));
        stream.Write(header);
        for (int i = 0; i < layers.Count; i++)
        {
            Write(stream, layers[i], contents[i].Tables, contents[i].Pages);
        }

        int digits = FileChecksum.Find(header);
        stream.Position = header.Length;
        string checksum = FileChecksum.Compute(header, digits, stream);
        stream.Position = digits;
        stream.Write(Encoding.ASCII.GetBytes(checksum));
    }

    private static void Write(FileStream stream, StoredLayer layer, CacheTables tables, int[] pages)
    {
        foreach (int[] table in (int[][])[tables.Lengths, tables.Compressed, tables.Released, tables.Sinks, tables.PageIndices])
        {
            stream.Write(MemoryMarshal.AsBytes<int>(table));
        }

        layer.Storage.VisitPages(keys: true, CacheFileFormat.Version, pages, fill: false, bytes => stream.Write(bytes));
        layer.Storage.VisitPages(keys: false, CacheFileFormat.Version, pages, fill: false, bytes => stream.Write(bytes));
        layer.VisitWindow(keys: true, tables, fill: false, bytes => stream.Write(bytes));
        layer.VisitWindow(keys: false, tables, fill: false, bytes => stream.Write(bytes));
        if (layer.Options.SinkTokens > 0)
        {
            layer.VisitSinks(keys: true, tables, fill: false, bytes => stream.Write(bytes));
            layer.VisitSinks(keys: false, tables, fill: false, bytes => stream.Write(bytes));
        }

        if (layer.Options.KeyChannelScales)
        {
            layer.VisitKeyScales(tables, fill: false, bytes => stream.Write(bytes));
        }

        foreach ((_, TorchSharp.torch.Tensor sums) in layer.Statistics)
        {
            layer.VisitStatistics(sums, tables, fill: false, bytes => stream.Write(bytes));
        }
    }
}
