using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Mustafar.Native;
using Mustafar.Storage;

namespace Mustafar;

/// <summary>Checks a cache file and restores its content into empty caches.</summary>
internal sealed class CacheFileReader
{
    private readonly string _path;
    private readonly Stream _stream;
    private readonly FileTransfer _transfer;
    private readonly SafetensorsHeader _header;
    private readonly int _version;

    /// <summary>Checks that a file is a cache file and not damaged.</summary>
    /// <param name="stream">The whole file, at its first byte; it must be able to seek.</param>
    /// <param name="path">Its name in an error.</param>
    /// <param name="transfer">Tracks the progress.</param>
    /// <exception cref="MustafarCacheFileException">It is not.</exception>
    internal CacheFileReader(Stream stream, string path, FileTransfer transfer)
    {
        (_path, _stream, _transfer) = (path, stream, transfer);
        try
        {
            transfer.Begin(2 * stream.Length); // once for the checksum
            _header = SafetensorsHeader.Read(_stream);
            _version = ReadVersion();
            CheckChecksum();
        }
        catch (SafetensorsException exception)
        {
            throw Refused(exception.Message, exception);
        }
    }

    /// <summary>The metadata that the caches were saved with.</summary>
    internal Dictionary<string, string> UserMetadata => _header.Metadata
        .Where(item => item.Key.StartsWith(CacheFileFormat.UserPrefix, StringComparison.Ordinal))
        .ToDictionary(item => item.Key[CacheFileFormat.UserPrefix.Length..], item => item.Value);

    /// <summary>Restores empty caches. They only change when nothing can be refused any more.</summary>
    /// <exception cref="MustafarCacheFileException">The file belongs to another model, has other options or shapes, or is
    /// damaged.</exception>
    internal void Restore(IReadOnlyList<StoredLayer> layers, string fingerprint)
    {
        CheckDescription(layers, fingerprint);
        Content[] contents = [.. layers.Select(ReadTables)];
        CheckLengths(contents);
        int tensors = contents.Sum(content => content.Tensors);
        if (tensors != _header.Tensors.Count)
        {
            throw Refused($"expected {tensors} tensors, but it has {_header.Tensors.Count}.");
        }

        Restored[] stores = [.. Enumerable.Range(0, layers.Count).GroupBy(i => layers[i].Store).Select(group => Common(group, layers, contents))];
        try
        {
            foreach (Restored store in stores)
            {
                CacheTables tables = store.Common.Tables;
                store.Pages = store.Store.Rent(
                    store.Common.Pages,
                    tables.Compressed.Max(),
                    tables.Lengths.Zip(tables.Compressed, (length, compressed) => length - compressed).Max(),
                    tables.TotalLengths.Max());
                for (int i = 0; i < store.Layers.Length; i++)
                {
                    int layer = store.Layers[i];
                    Fill(layers[layer], layer, contents[layer], [.. store.Common.Numbers[i].Select(number => store.Pages[number])]);
                }
            }
        }
        catch (Exception exception)
        {
            foreach (Restored store in stores)
            {
                store.Store.Discard(store.Slots, store.Pages);
            }

            if (exception is EndOfStreamException)
            {
                throw Refused("the file ended while it was being read.", exception);
            }

            throw;
        }

        foreach (Restored store in stores)
        {
            store.Common.Tables.Restore(store.Store, store.Slots, store.Pages);
        }
    }

    private int ReadVersion()
    {
        if (!_header.Metadata.TryGetValue(CacheFileFormat.VersionKey, out string? text))
        {
            throw Refused($"expected a saved cache, but the file's metadata have no '{CacheFileFormat.VersionKey}'.");
        }

        return int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int version)
            && version is >= CacheFileFormat.FirstVersion and <= CacheFileFormat.Version
            ? version
            : throw Refused(
                $"expected format version {CacheFileFormat.FirstVersion} to {CacheFileFormat.Version}, but it has '{text}'; it may need a newer version of this library.");
    }

    private void CheckChecksum()
    {
        byte[] header = new byte[_header.DataOffset];
        _stream.Position = 0;
        _stream.ReadExactly(header);
        int digits = FileChecksum.Find(header);
        if (digits < 0)
        {
            throw Refused($"expected a checksum '{FileChecksum.Key}' in the metadata, but it has none.");
        }

        string stated = Encoding.ASCII.GetString(header, digits, FileChecksum.Blank.Length);
        string actual = FileChecksum.Compute(header, digits, _stream, _transfer);
        if (stated != actual)
        {
            throw Refused($"expected SHA-256 {stated}, but its content has {actual}; the file is damaged.");
        }
    }

    private void CheckDescription(IReadOnlyList<StoredLayer> layers, string fingerprint)
    {
        foreach ((string key, string expected) in CacheFileFormat.Describe(_version, layers, fingerprint))
        {
            string? actual = _header.Metadata.GetValueOrDefault(key);
            if (actual != expected)
            {
                string model = key == CacheFileFormat.FingerprintKey ? " (the file belongs to another model)" : "";
                throw Refused($"expected '{expected}' as {key}, but it is {(actual is null ? "absent" : $"'{actual}'")}{model}.");
            }
        }
    }

    // Everything of a layer except keys and values, checked.
    private Content ReadTables(StoredLayer layer, int index)
    {
        // These may have any length; the other lengths follow from them.
        long indices = Entry(index, "page_indices").Shape is [long count] ? count : 0;
        long pages = Entry(index, "key_pages").Shape is [long first, ..] ? first : 0;
        RecentQueries? queries = layer.Storage.RecentQueries;
        long queryHeads = queries is not null && Entry(index, CacheFileFormat.Queries).Shape is [_, long heads, ..] ? heads : 0;
        int tensors = 0;
        foreach (CacheFileTensor tensor in CacheFileFormat.Tensors(_version, layer, index, pages, indices, queryHeads))
        {
            SafetensorsEntry entry = Entry(tensor.Name);
            if (entry.DType != tensor.DType || !entry.Shape.SequenceEqual(tensor.Shape))
            {
                throw Refused(
                    $"tensor '{tensor.Name}': expected {tensor.DType} [{string.Join(", ", tensor.Shape)}], but it is {entry.DType} [{string.Join(", ", entry.Shape)}].");
            }

            tensors++;
        }

        CacheTables tables = new(
            ReadIntegers(index, "lengths"),
            ReadIntegers(index, "compressed"),
            ReadIntegers(index, "released_pages"),
            ReadIntegers(index, "sink_counts"),
            ReadIntegers(index, "page_indices"));
        int[] queryCounts = queries is null ? [] : ReadIntegers(index, CacheFileFormat.QueryCounts);
        string? problem = tables.Problem(layer.Options, layer.Store.Table.Rules, pages)
            ?? queries?.FindProblem(queryHeads, queryCounts, tables.TotalLengths, layer.Shape.NumKvHeads);
        return problem is not null
            ? throw Refused($"layer {index}: {problem}")
            : new Content(tables, queryCounts, tensors);
    }

    // What the layers of one store have in common.
    private Restored Common(IEnumerable<int> group, IReadOnlyList<StoredLayer> layers, Content[] contents)
    {
        int[] indices = [.. group];
        StoredLayer first = layers[indices[0]];
        CommonTables? common = CommonTables.Of(
            [.. indices.Select(i => contents[i].Tables)], first.Store.Table.Rules.GroupSize, out string? problem);
        return common is null ? throw Refused(problem!) : new Restored(first.Store, first.Slots, indices, common);
    }

    private void CheckLengths(Content[] contents)
    {
        int[] first = contents[0].Tables.TotalLengths;
        for (int i = 1; i < contents.Length; i++)
        {
            int[] lengths = contents[i].Tables.TotalLengths;
            if (!lengths.AsSpan().SequenceEqual(first))
            {
                throw Refused(
                    $"expected layers of the same lengths [{string.Join(", ", first)}], but layer {i} has [{string.Join(", ", lengths)}].");
            }
        }
    }

    // Everything is stored where no query sees it yet.
    private void Fill(StoredLayer layer, int index, Content content, int[] pages)
    {
        CacheTables tables = content.Tables;
        FillPages(keys: true, "key_pages");
        FillPages(keys: false, "value_pages");
        Seek(index, "window_keys");
        layer.VisitWindow(keys: true, tables, fill: true, Read);
        Seek(index, "window_values");
        layer.VisitWindow(keys: false, tables, fill: true, Read);
        if (layer.Options.SinkTokens > 0)
        {
            Seek(index, "sink_keys");
            layer.VisitSinks(keys: true, tables, fill: true, Read);
            Seek(index, "sink_values");
            layer.VisitSinks(keys: false, tables, fill: true, Read);
        }

        if (layer.Options.KeyChannelScales)
        {
            SafetensorsEntry entry = Seek(index, "key_channel_scales");
            int head = 0;
            layer.VisitKeyScales(tables, fill: true, scales =>
            {
                Read(scales);
                int sequence = head++ / layer.Shape.NumKvHeads;
                if (tables.Compressed[sequence] > 0 && !BlockCheck.AreChannelScales(MemoryMarshal.Cast<byte, float>(scales)))
                {
                    throw Refused(
                        $"tensor '{entry.Name}': expected numbers from 2^-10 to 2^10 that Float16 can represent, but sequence {sequence} has another.");
                }
            });
        }

        foreach ((string name, TorchSharp.torch.Tensor sums) in layer.Statistics)
        {
            Seek(index, name);
            layer.VisitStatistics(sums, tables, fill: true, Read);
        }

        if (layer.Storage.RecentQueries is RecentQueries queries)
        {
            SafetensorsEntry entry = Seek(index, CacheFileFormat.Queries);
            using TorchSharp.torch.Tensor padded = TorchSharp.torch.empty([.. entry.Shape], dtype: layer.Shape.DType, device: TorchSharp.torch.CPU);
            if (entry.ByteCount > 0)
            {
                Read(padded.bytes);
            }

            queries.Restore(layer.Slots, padded, content.QueryCounts, layer.Shape);
        }

        void FillPages(bool keys, string part)
        {
            SafetensorsEntry entry = Seek(index, part);
            NativeFormat format = layer.Storage.Format.OfFile(keys, _version);
            int blockBytes = (int)entry.Shape[^1];
            layer.Storage.VisitPages(keys, _version, pages, fill: true, blocks =>
            {
                Read(blocks);
                for (int start = 0; start < blocks.Length; start += blockBytes)
                {
                    if (!BlockCheck.IsValid(blocks.Slice(start, blockBytes), format))
                    {
                        long place = _stream.Position - entry.Offset - blocks.Length + start;
                        throw Refused(
                            $"tensor '{entry.Name}': expected blocks that keep {format.Keep} of {format.HeadDim} channels{(LayerFormat.HasIntegers(format) ? " in integers with scales" : "")}, but the one at byte {place} does not.");
                    }
                }
            });
        }
    }

    private void Read(Span<byte> bytes)
    {
        _transfer.Advance(bytes.Length);
        _stream.ReadExactly(bytes);
    }

    private SafetensorsEntry Seek(int layer, string part)
    {
        SafetensorsEntry entry = Entry(layer, part);
        _stream.Position = entry.Offset;
        return entry;
    }

    private int[] ReadIntegers(int layer, string part)
    {
        int[] numbers = new int[Seek(layer, part).ByteCount / sizeof(int)];
        Read(MemoryMarshal.AsBytes(numbers.AsSpan()));
        return numbers;
    }

    private SafetensorsEntry Entry(int layer, string part) => Entry(CacheFileFormat.TensorName(layer, part));

    private SafetensorsEntry Entry(string name) =>
        _header.Tensors.GetValueOrDefault(name) ?? throw Refused($"expected a tensor '{name}', but there is none.");

    private MustafarCacheFileException Refused(string problem, Exception? cause = null) => new(problem, _path, cause);

    private sealed record Content(CacheTables Tables, int[] QueryCounts, int Tensors);

    private sealed record Restored(CompressedStore Store, int[] Slots, int[] Layers, CommonTables Common)
    {
        internal int[] Pages { get; set; } = [];
    }
}
