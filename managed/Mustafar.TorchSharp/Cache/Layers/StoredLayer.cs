using static TorchSharp.torch;

namespace Mustafar;

/// <summary>A layer's part of sequences in a file.</summary>
/// <param name="Store">The store with the sequences.</param>
/// <param name="Index">Index of the layer in the store.</param>
/// <param name="Slots">The slots of the sequences, in the order of the file.</param>
internal sealed record StoredLayer(CompressedStore Store, int Index, int[] Slots)
{
    internal LayerStorage Storage => Store.Layers[Index];

    internal MustafarOptions Options => Store.Options[Index];

    internal CacheShape Shape => Store.Shape;

    internal int BatchSize => Slots.Length;

    /// <summary>Shape of pages in a file of some version: [pages, num_kv_heads, blocks, bytes].</summary>
    internal long[] PagesShape(bool keys, int version, long pages) =>
        [pages, Shape.NumKvHeads, Storage.Format.PageBlocks, LayerFormat.BlockBytes(Storage.Format.OfFile(keys, version))];

    /// <summary>Shape of the channel scales of keys, and of what selections gather, in a file: [batch, num_kv_heads, head_dim].</summary>
    internal long[] ChannelsShape => [BatchSize, Shape.NumKvHeads, Shape.HeadDim];

    /// <summary>Shape of the recent window in a file: [batch, num_kv_heads, ring, head_dim].</summary>
    internal long[] WindowShape => [BatchSize, Shape.NumKvHeads, Store.Table.Rules.TailCapacity, Shape.HeadDim];

    /// <summary>Shape of the sinks in a file: [batch, num_kv_heads, sink_tokens, head_dim].</summary>
    internal long[] SinksShape => [BatchSize, Shape.NumKvHeads, Options.SinkTokens, Shape.HeadDim];

    /// <summary>Visits the slots of the recent window; those without a token are zero in files.</summary>
    /// <param name="keys">Keys or values.</param>
    /// <param name="tables">Which slots are in use.</param>
    /// <param name="fill">Whether the visitor writes them.</param>
    /// <param name="visit">Reads or writes a slot.</param>
    internal void VisitWindow(bool keys, CacheTables tables, bool fill, LayerStorage.Visitor visit)
    {
        // A file has the ring of the largest size: token t is in place t mod ring.
        int ring = Store.Table.Rules.TailCapacity;
        Storage.VisitRows(Storage.Window(keys), Slots, ring, Find, fill, visit);

        int? Find(int b, int place)
        {
            int first = tables.Compressed[b];
            int token = first + ((place - (first % ring) + ring) % ring);
            return token < tables.Lengths[b] ? token % Store.Ring : null;
        }
    }

    /// <summary>Visits the places of the sinks, in Float32; those without a token are zero.</summary>
    /// <param name="keys">Keys or values.</param>
    /// <param name="tables">Which places are in use.</param>
    /// <param name="fill">Whether the visitor writes them.</param>
    /// <param name="visit">Reads or writes a place.</param>
    internal void VisitSinks(bool keys, CacheTables tables, bool fill, LayerStorage.Visitor visit) => Storage.VisitRows(
        keys ? Storage.Sinks!.Keys : Storage.Sinks!.Values,
        Slots,
        Options.SinkTokens,
        (b, place) => place < tables.Sinks[b] ? place : null,
        fill,
        visit);

    /// <summary>Visits the channel scales of each head's keys, in Float32; those of sequences without compressed tokens are zero.</summary>
    /// <param name="tables">Which sequences have scales.</param>
    /// <param name="fill">Whether the visitor writes them.</param>
    /// <param name="visit">Reads or writes a head's.</param>
    internal void VisitKeyScales(CacheTables tables, bool fill, LayerStorage.Visitor visit)
    {
        using Tensor rows = Storage.KeyScales!.unsqueeze(2);
        Storage.VisitRows(rows, Slots, 1, (b, place) => tables.Compressed[b] > 0 ? place : null, fill, visit);
    }

    /// <summary>What selections gather, by the name of its tensor.</summary>
    internal IEnumerable<(string Name, Tensor Sums)> Statistics =>
        from item in new (string Name, Tensor? Sums)[]
        {
            ("key_selection_queries", Storage.KeyStatistics?.Queries),
            ("key_selection_tokens", Storage.KeyStatistics?.Tokens),
            ("value_selection_tokens", Storage.ValueStatistics?.Tokens),
        }
        where item.Sums is not null
        select (item.Name, item.Sums);

    /// <summary>Visits what a selection has gathered for each head, in Float32; zero for sequences without tokens.</summary>
    /// <param name="sums">The tensor.</param>
    /// <param name="tables">Which sequences have tokens.</param>
    /// <param name="fill">Whether the visitor writes it.</param>
    /// <param name="visit">Reads or writes a head's.</param>
    internal void VisitStatistics(Tensor sums, CacheTables tables, bool fill, LayerStorage.Visitor visit)
    {
        using Tensor rows = sums.unsqueeze(2);
        Storage.VisitRows(rows, Slots, 1, (b, place) => tables.TotalLengths[b] > 0 ? place : null, fill, visit);
        if (fill)
        {
            Array.ForEach(Slots, slot => Storage.KeyStatistics?.Weigh(slot));
            Array.ForEach(Slots, slot => Storage.ValueStatistics?.Weigh(slot));
        }
    }
}
