using System.Runtime.InteropServices;
using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Compressed sequences of one or more layers: the table of sequences, what each layer stores, and the current step.</summary>
internal sealed class CompressedStore : IDisposable, IMeasuredCache
{
    private readonly StepWorkspace _workspace;
    private readonly int? _maxLength;
    private readonly bool _isFixed; // whether nothing that is stored moves
    private readonly long _scaleBytes; // and what selections gather, of one slot in all layers
    private readonly List<LayerStorage> _layers = [];
    private readonly TokenEvictor? _evictor;
    private int _moves; // of what is dense

    /// <summary>Makes a store without sequences.</summary>
    /// <param name="shape">Heads, head_dim, dtype and device of all layers.</param>
    /// <param name="options">How each layer prunes.</param>
    /// <param name="limits">Numbers of sequences, tokens and bytes that there is room for from the start.</param>
    /// <param name="family">A store with the same options whose pages this one may share.</param>
    /// <param name="ring">Initial number of places in the ring of dense tokens; as few as possible if null.</param>
    /// <exception cref="ArgumentException">Layers differ in options that must be the same.</exception>
    /// <exception cref="CacheBudgetException">The budget is too small for one group of tokens.</exception>
    internal CompressedStore(
        CacheShape shape,
        IReadOnlyList<MustafarOptions> options,
        CacheLimits limits,
        CompressedStore? family = null,
        int? ring = null)
    {
        _ = TensorAccess.Context(shape.Device); // a device without a back end is refused here, not at the first token
        (Shape, Options, _maxLength) = (shape, options, limits.MaxLength);
        SequenceRules rules = SequenceRules.Of(options);
        LayerFormat[] formats = [.. options.Select(layer => new LayerFormat(shape, layer))];
        Array.ForEach(formats, format => format.CheckServed(shape));
        int slots = limits.MaxSequences ?? 1;
        _scaleBytes = formats.Select((format, i) => format.KeyScaleBytes + format.StatisticsBytes(shape, options[i])).Sum();
        _isFixed = limits.BudgetBytes is not null || limits.BudgetTokens is not null
            || (limits.MaxLength is not null && shape.Device.type != DeviceType.CPU);
        Ring = _isFixed ? rules.TailCapacity : ring ?? rules.RingFor(dense: 1, compressed: 0, present: 0, isExact: false);
        PagePool pool = family?.Table.Pool.AddOwner() ?? new PagePool(
            shape.NumKvHeads,
            [.. formats.Select(format => format.HeadBytes)],
            shape.Device,
            Pages(limits, rules, formats),
            mayMove: !_isFixed);
        try
        {
            Table = new SequenceTable(rules, pool, slots, PagesOfSlot(limits, rules) ?? pool.Limit ?? 0, shape.Device);
        }
        catch
        {
            pool.Dispose();
            throw;
        }

        Plan = new StepPlan(slots, shape.Device);
        _workspace = new StepWorkspace(shape.Device);
        try
        {
            for (int i = 0; i < options.Count; i++)
            {
                _layers.Add(new LayerStorage(shape, options[i], formats[i], Table, i, _workspace, Ring));
            }
        }
        catch
        {
            Dispose();
            throw;
        }

        _evictor = rules.Eviction is null ? null : new TokenEvictor(rules.Eviction, Table, _layers);
        MustafarMetrics.Add(this, "compressed");
    }

    internal CacheShape Shape { get; }

    /// <summary>How each layer prunes.</summary>
    internal IReadOnlyList<MustafarOptions> Options { get; }

    internal SequenceTable Table { get; }

    internal IReadOnlyList<LayerStorage> Layers => _layers;

    /// <summary>The current step.</summary>
    internal StepPlan Plan { get; private set; }

    /// <summary>Number of places in the ring of dense tokens: token t is in place t mod ring.</summary>
    internal int Ring { get; private set; }

    /// <summary>Its memory. Stores that share pages count an equal share of them each.</summary>
    public KeyValueCacheMemory Memory
    {
        get
        {
            long tokens = Table.InUse.Sum(sequence => (long)sequence.Tokens) * _layers.Count;
            return new KeyValueCacheMemory(
                CompressedBytes: Table.Pool.BytesOfOwner + Table.Bytes + (Table.Slots * _scaleBytes),
                WindowBytes: (Table.Slots * (SlotBytes(Ring) - _scaleBytes)) + HistoryBytes,
                UsedBytes: Table.Pool.UsedBytesOfOwner + Table.InUse.Sum(BytesOutsidePages) + HistoryBytes,
                DenseBytes: tokens * Shape.TokenBytes,
                Fp16Bytes: tokens * 2 * Shape.NumKvHeads * Shape.HeadDim * 2);
        }
    }

    /// <summary>Used and free memory.</summary>
    internal CacheUsage Usage
    {
        get
        {
            int sequences = Table.InUse.Count(), free = Table.Pool.FreePages;
            long history = HistoryBytes;
            return new CacheUsage(
                sequences,
                UsedBytes: Table.Pool.UsedBytes + Table.InUse.Sum(BytesOutsidePages) + history,
                ReservedBytes: Table.Pool.Bytes + Table.Bytes + Plan.Bytes + (Table.Slots * SlotBytes(Ring)) + history,
                FreeBytes: Table.Pool.Limit is null ? null : free * Table.Pool.PageBytes,
                FreeTokens: Table.Pool.Limit is null ? null : (long)free * Table.Rules.GroupSize);
        }
    }

    // Bytes of queries and of the attention that tokens received.
    private long HistoryBytes => (_evictor?.Bytes ?? 0) + _layers.Sum(layer => layer.RecentQueries?.Bytes ?? 0);

    /// <summary>Makes room for that many sequences: dense data is copied, compressed data stays in place.</summary>
    internal void Grow(int slots)
    {
        StepPlan plan = new(slots, Shape.Device);
        foreach (LayerStorage layer in _layers)
        {
            layer.Grow(slots);
        }

        Table.Grow(slots);
        Plan.Dispose();
        Plan = plan;
        _moves++;
    }

    /// <summary>Begins a step. Afterwards everything it needs is known, rented and on the device; if that fails, nothing has
    /// changed.</summary>
    /// <param name="slots">The slot of each row.</param>
    /// <param name="tokens">Tokens of the row that has most.</param>
    /// <param name="counts">Tokens of each row; all if empty.</param>
    /// <param name="kind">What it does.</param>
    internal void Begin(ReadOnlySpan<int> slots, int tokens, ReadOnlySpan<int> counts, StepKind kind)
    {
        Table.Plan(Plan, slots, tokens, counts, kind);
        try
        {
            ReserveRing(Plan.MostDense, Plan.MostCompressed);
            Plan.FindOverwritten(Ring);
        }
        catch
        {
            Table.Rollback(Plan);
            throw;
        }
    }

    /// <summary>Adds a step's tokens to a layer, and attends from them.</summary>
    /// <param name="layer">Which layer.</param>
    /// <param name="query">Queries [batch, num_heads, n, head_dim].</param>
    /// <param name="keys">Keys [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="values">Values [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="scale">Factor of the scores; 1/√head_dim if null.</param>
    /// <param name="rotation">What is still to be done to queries and keys, in place; null if nothing is.</param>
    /// <param name="isLast">Whether nothing that can fail follows, so that nothing has to be undone.</param>
    internal Tensor Forward(int layer, Tensor query, Tensor keys, Tensor values, double? scale, HeadRotation? rotation, bool isLast)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        keys = TensorAccess.WithContiguousRows(keys);
        values = TensorAccess.WithContiguousRows(values);
        Tensor output = _layers[layer].Forward(Plan, query, keys, values, scale, rotation, isLast);
        _evictor?.Observe(layer, Plan, query, scale ?? 1 / Math.Sqrt(Shape.HeadDim));
        return output.MoveToOuterDisposeScope();
    }

    /// <summary>Adds tokens to the single layer, without attention; if it fails, nothing has changed.</summary>
    /// <param name="slots">The slot of each row.</param>
    /// <param name="keys">Keys [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="values">Values [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="counts">Tokens of each row; all if empty.</param>
    internal void Append(ReadOnlySpan<int> slots, Tensor keys, Tensor values, ReadOnlySpan<int> counts)
    {
        if (_layers[0].NeedsQueries is (string option, ChannelSelection selection))
        {
            throw new InvalidOperationException(
                $"Expected queries with the new tokens, which {option} '{selection.Name}' needs; add tokens with Forward.");
        }

        using DisposeScope scope = NewDisposeScope();
        keys = TensorAccess.WithContiguousRows(keys);
        values = TensorAccess.WithContiguousRows(values);
        Begin(slots, checked((int)keys.size(2)), counts, StepKind.Append);
        try
        {
            _layers[0].AppendAlone(Plan, keys, values);
        }
        catch
        {
            Rollback();
            throw;
        }

        Commit();
    }

    /// <summary>What a step of one token depends on, other than the content of device memory; null if it does special work.</summary>
    internal StepLayout? Layout(int buffers)
    {
        // The host looks sinks up: the work is the same if they belong to the first slots and each row has all of them.
        bool sinks = Table.Rules.SinkTokens > 0;
        bool repeats = _evictor is null && !Plan.TakesSinks && !_layers.Exists(layer => layer.SelectsByOperations(Plan)) && Plan.Overwritten.Count == 0
            && (!sinks || (Plan.IsUniform && Plan.IsOrdered && Plan.SinksBefore.IndexOfAnyExcept(Table.Rules.SinkTokens) < 0));
        return repeats
            ? new StepLayout(Plan.Batch, Plan.MaxTokens, IsPadded: false, Table.AddressOf(Plan, _moves), _workspace.Address, Layers[0].Address, buffers)
            : null;
    }

    /// <summary>Checks a scale of the scores: the library computes in single precision, which may not hold a double, and that must be found
    /// before a token is added.</summary>
    /// <exception cref="ArgumentOutOfRangeException">It can't hold it.</exception>
    internal static void CheckScale(double? scale)
    {
        if (scale is double factor && !((float)factor is > 0 and < float.PositiveInfinity))
        {
            throw new ArgumentOutOfRangeException(
                nameof(scale), factor, "Expected a scale of the scores that is positive, and finite in single precision.");
        }
    }

    /// <summary>Commits a step.</summary>
    internal void Commit()
    {
        _layers.ForEach(layer => layer.Commit());
        if (MustafarMetrics.CountsCompressed)
        {
            MustafarMetrics.AddCompressed(Plan.NewlyCompressed);
        }

        Table.Commit(Plan);
        if (!_isFixed && Table.MostCompressed <= Table.Rules.GroupSize)
        {
            ShrinkRing();
        }

        _evictor?.Commit();
    }

    /// <summary>Removes the tokens that the options give up from the sequences of the last step. Each one then has either all of its tokens
    /// or the kept ones.</summary>
    /// <exception cref="CacheBudgetException">There are not enough pages for the kept tokens in addition to all present ones.</exception>
    internal void Evict()
    {
        using IDisposable noGrad = no_grad();
        foreach (int slot in _evictor is null ? default : Plan.Slots)
        {
            using DisposeScope scope = NewDisposeScope();
            if (_evictor!.Choose(slot) is Tensor tokens)
            {
                Keep(slot, tokens, Table.Rules.Eviction!.RecentTokens);
            }
        }
    }

    /// <summary>Reduces a sequence to some of its tokens. Everything that can fail comes before the first change.</summary>
    /// <param name="slot">Its slot.</param>
    /// <param name="tokens">The tokens that remain in each layer and KV head, in ascending order and with all sinks, Int64 [num_layers,
    /// num_kv_heads, count].</param>
    /// <param name="latest">How many of them are the latest ones, without a gap.</param>
    /// <exception cref="CacheBudgetException">There are not enough pages for them in addition to all present tokens.</exception>
    internal void Keep(int slot, Tensor tokens, int latest)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        int sinks = Table[slot].Sinks, length = checked((int)tokens.size(2)) - sinks;
        Scalar firstOther = sinks;
        Tensor others = tokens.narrow(2, sinks, length).to(Shape.Device).sub(firstOther);
        GC.KeepAlive(firstOther);
        int compressed = Table.Rules.Due(length);
        int count = compressed / Table.Rules.GroupSize;
        Table.Pool.Require(count);
        ReserveRing(length - compressed, compressed);
        int[] pages = Table.Pool.Rent(count, held: 0, last: -1);
        try
        {
            using BackendArray<int> table = new(Math.Max(1, count), Shape.Device);
            pages.CopyTo(table.Span);
            table.Upload();
            LayerStorage.Returning[] dense = [.. _layers.Select((layer, i) => layer.Keep(slot, others[i], compressed, table))];
            for (int i = 0; i < dense.Length; i++)
            {
                _layers[i].Return(dense[i]);
            }

            _evictor?.Keep(slot, tokens.to(Shape.Device));
        }
        catch
        {
            Array.ForEach(pages, Table.Pool.Return);
            throw;
        }

        Table.Keep(slot, length, compressed, latest, pages);
    }

    /// <summary>Rolls a step back.</summary>
    internal void Rollback()
    {
        _evictor?.Rollback();
        try
        {
            _layers.ForEach(layer => layer.Rollback(Plan));
        }
        finally
        {
            Table.Rollback(Plan);
        }
    }

    /// <summary>Shortens sequences. Everything that can fail comes before the first change.</summary>
    /// <param name="slots">Their slots.</param>
    /// <param name="tokens">Tokens that remain of each, at most as many as it has.</param>
    /// <param name="names">The name of each in an error.</param>
    internal void Shorten(ReadOnlySpan<int> slots, ReadOnlySpan<int> tokens, ReadOnlySpan<int> names)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        for (int i = 0; i < slots.Length; i++)
        {
            Table.Rules.CheckLength(Table[slots[i]], Math.Max(0, tokens[i] - Table.Rules.SinkTokens), names[i]);
        }

        for (int i = 0; i < slots.Length; i++)
        {
            int length = Math.Max(0, tokens[i] - Table.Rules.SinkTokens);
            int compressed = Table.CompressedAt(Table[slots[i]], length);
            ReserveRing(length - compressed, compressed);
        }

        List<(LayerStorage Layer, LayerStorage.Returning Tokens)> returning = [];
        for (int i = 0; i < slots.Length; i++)
        {
            int length = Math.Max(0, tokens[i] - Table.Rules.SinkTokens);
            int compressed = Table.CompressedAt(Table[slots[i]], length);
            foreach (LayerStorage layer in _layers)
            {
                if (layer.Prepare(slots[i], compressed, length) is LayerStorage.Returning dense)
                {
                    returning.Add((layer, dense));
                }
            }
        }

        returning.ForEach(item => item.Layer.Return(item.Tokens));
        for (int i = 0; i < slots.Length; i++)
        {
            foreach (LayerStorage layer in _layers)
            {
                layer.Sinks?.Erase(slots[i], tokens[i], Table[slots[i]].Sinks);
                layer.RecentQueries?.Shorten(slots[i], Table[slots[i]].Tokens - tokens[i]);
            }

            _evictor?.Shorten(slots[i], tokens[i], Table[slots[i]].Tokens - tokens[i]);
            Table.Shorten(slots[i], tokens[i]);
        }
    }

    /// <summary>Adds a sequence in a free slot that continues one of this store or of a store that shares its pages.</summary>
    internal void Continue(int slot, CompressedStore source, int parent)
    {
        using IDisposable noGrad = no_grad();
        for (int i = 0; i < _layers.Count; i++)
        {
            _layers[i].Continue(slot, source._layers[i], parent);
        }

        Table.Continue(slot, source.Table[parent]);
        if (source == this)
        {
            _evictor?.Continue(slot, parent);
        }
    }

    /// <summary>Some of the layers as a separate store, with the sequences in the same slots as they were before a current step.</summary>
    /// <param name="layers">The layers.</param>
    /// <param name="slots">The slots of all sequences.</param>
    internal CompressedStore Extract(ReadOnlySpan<int> layers, ReadOnlySpan<int> slots)
    {
        using IDisposable noGrad = no_grad();
        MustafarOptions[] options = new MustafarOptions[layers.Length];
        for (int i = 0; i < layers.Length; i++)
        {
            options[i] = Options[layers[i]];
        }

        CompressedStore part = new(Shape, options, new CacheLimits { MaxSequences = Table.Slots }, ring: Ring);
        try
        {
            foreach (int slot in slots)
            {
                using DisposeScope scope = NewDisposeScope();
                int[] pages = part.Table.Pool.Rent(Table[slot].Pages.Count, held: 0, last: -1);
                part.Table.Restore(slot, Table[slot].Copy(pages));
                for (int i = 0; i < layers.Length; i++)
                {
                    part._layers[i].Continue(slot, _layers[layers[i]], slot);
                    for (int page = 0; page < pages.Length; page++)
                    {
                        part.Table.Pool.View(pages[page], i).copy_(Table.Pool.View(Table[slot].Pages[page], layers[i]));
                    }
                }
            }

            return part;
        }
        catch
        {
            part.Dispose();
            throw;
        }
    }

    /// <summary>Removes a sequence.</summary>
    internal void Remove(int slot)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        foreach (LayerStorage layer in _layers)
        {
            layer.Sinks?.Erase(slot, 0, Table[slot].Sinks);
            layer.RecentQueries?.Remove(slot);
        }

        _evictor?.Remove(slot);
        Table.Remove(slot);
    }

    /// <summary>Rents pages for the content of a file, and makes room for the pages of one sequence.</summary>
    /// <param name="pages">Number of pages.</param>
    /// <param name="compressed">Compressed tokens of the sequence that has most.</param>
    /// <param name="dense">Dense tokens of the sequence that has most.</param>
    /// <param name="longest">Tokens of the longest sequence.</param>
    /// <exception cref="CacheBudgetException">There are not enough pages.</exception>
    /// <exception cref="CacheLimitException">A sequence is longer than the cache allows.</exception>
    internal int[] Rent(int pages, int compressed, int dense, int longest)
    {
        if (longest > _maxLength)
        {
            throw new CacheLimitException($"Expected sequences of at most {_maxLength} tokens, but one in the file has {longest}.");
        }

        int ofSequence = compressed / Table.Rules.GroupSize;
        Table.Pool.Require(pages);
        Table.Reserve(ofSequence);
        ReserveRing(dense, compressed);
        return Table.Pool.Rent(pages, held: 0, last: -1, ofSequence);
    }

    /// <summary>Returns pages that a file should have filled, and empties the sinks.</summary>
    internal void Discard(int[] slots, int[] pages)
    {
        Array.ForEach(pages, Table.Pool.Return);
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        foreach (int slot in slots)
        {
            foreach (LayerStorage layer in _layers)
            {
                layer.Sinks?.Erase(slot, 0, layer.Sinks.Capacity);
                layer.RecentQueries?.Remove(slot);
            }
        }
    }

    public void Dispose()
    {
        _evictor?.Dispose();
        MustafarMetrics.Remove(this);
        _layers.ForEach(layer => layer.Dispose());
        _workspace.Dispose();
        Plan.Dispose();
        Table.Dispose();
    }

    // Bytes of the recent window, sinks and channel scales of one slot in all layers, with a ring of that many places.
    private long SlotBytes(int ring) => (_layers.Count * LayerStorage.SlotBytes(Shape, ring, Table.Rules.SinkTokens)) + _scaleBytes;

    // Bytes of a sequence's dense tokens, sinks and channel scales in all layers.
    private long BytesOutsidePages(Sequence sequence) =>
        (_layers.Count * LayerStorage.SlotBytes(Shape, sequence.Dense, sequence.Sinks)) + (sequence.Compressed > 0 ? _scaleBytes : 0);

    // Makes room for sequences that will have that many dense and compressed tokens, in addition to the others.
    private void ReserveRing(int dense, int compressed)
    {
        int wanted = Table.Rules.RingFor(
            Math.Max(dense, Table.MostDense), Math.Max(compressed, Table.MostCompressed), Ring, isExact: Shape.Device.type == DeviceType.CPU);
        if (wanted > Ring)
        {
            ResizeRing(wanted);
        }
    }

    // Returns what a first group left when it was compressed. If there is no memory to do so, nothing changes.
    private void ShrinkRing()
    {
        int wanted = Table.Rules.RingFor(Table.MostDense, Table.MostCompressed, Ring, isExact: false);
        if (wanted < Ring)
        {
            try
            {
                ResizeRing(wanted);
            }
            catch (Exception error) when (error is ExternalException or OutOfMemoryException)
            {
            }
        }
    }

    private void ResizeRing(int places)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        List<LayerStorage.RingTensors> rings = [];
        try
        {
            _layers.ForEach(layer => rings.Add(layer.CopyRing(places)));
        }
        catch
        {
            rings.ForEach(ring => ring.Dispose());
            throw;
        }

        for (int i = 0; i < _layers.Count; i++)
        {
            _layers[i].Take(rings[i]);
        }

        Ring = places;
        _moves++;
    }

    // Maximum number of pages of a sequence; null if unlimited.
    private static int? PagesOfSlot(CacheLimits limits, SequenceRules rules) =>
        limits.MaxLength is int length ? (int)((length + (long)rules.GroupSize - 1) / rules.GroupSize) : null;

    // Number of pages that a budget allows; null without one.
    private int? Pages(CacheLimits limits, SequenceRules rules, LayerFormat[] formats)
    {
        long? pages = limits.BudgetTokens is long tokens ? ((tokens - 1) / rules.GroupSize) + 1 : null;
        if (limits.BudgetBytes is long budget)
        {
            int slots = limits.MaxSequences ?? throw new ArgumentException(
                $"Expected {nameof(CacheLimits.MaxSequences)} with {nameof(CacheLimits.BudgetBytes)}, since each sequence has a recent window, but got none.",
                nameof(limits));
            int? pagesOfSlot = PagesOfSlot(limits, rules);
            long pageBytes = (Shape.NumKvHeads * formats.Sum(format => PagePool.Aligned(format.HeadBytes)))
                + (pagesOfSlot is null ? SequenceTable.BytesOf(slots, 1) : 0);
            long slotBytes = (formats.Length * LayerStorage.SlotBytes(Shape, rules.TailCapacity, rules.SinkTokens)) + _scaleBytes;
            long fixedBytes = (slots * slotBytes) + SequenceTable.BytesOf(slots, Math.Max(SequenceTable.SmallestCapacity, pagesOfSlot ?? 0))
                + StepPlan.BytesOf(slots) + NativeConstants.PagePadding;
            if (budget - fixedBytes < pageBytes)
            {
                throw new CacheBudgetException(
                    $"Expected a budget of at least {fixedBytes + pageBytes} bytes, for the recent windows of {slots} sequences and one group of tokens, but got {budget}.");
            }

            pages = Math.Min(pages ?? long.MaxValue, (budget - fixedBytes) / pageBytes);
        }

        return pages is long some ? (int)Math.Min(some, int.MaxValue / 2) : null;
    }
}
