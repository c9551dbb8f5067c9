using Mustafar.Native;
using TorchSharp;

namespace Mustafar;

/// <summary>The sequences of a cache, each in its own slot, and their pages: once for all layers.</summary>
/// <remarks>A table that is dropped returns its pages to the pool when it is collected.</remarks>
internal sealed unsafe class SequenceTable : IDisposable
{
    /// <summary>Minimum number of pages of a sequence that there is room for, once one has any.</summary>
    internal const int SmallestCapacity = 16;

    private readonly torch.Device _device;
    private Sequence?[] _sequences;
    private PageTable _pages;

    /// <summary>Makes a table without sequences.</summary>
    /// <param name="rules">The rules of compression.</param>
    /// <param name="pool">Source of pages; this table becomes one of its owners and disposes it.</param>
    /// <param name="slots">Number of sequences that there is room for.</param>
    /// <param name="pages">Number of pages of a sequence that there is room for from the start; the table grows past it.</param>
    /// <param name="device">Device of the page table.</param>
    internal SequenceTable(SequenceRules rules, PagePool pool, int slots, int pages, torch.Device device)
    {
        Rules = rules;
        Pool = pool;
        _device = device;
        _sequences = new Sequence?[slots];
        _pages = new PageTable(slots, pages == 0 ? 0 : Math.Max(SmallestCapacity, pages), device);
    }

    ~SequenceTable()
    {
        // Null if the constructor failed: then the pool has no additional owner.
        if (_pages is not null)
        {
            Pool.Abandon([.. InUse.SelectMany(sequence => sequence.Pages)]);
        }
    }

    internal SequenceRules Rules { get; }

    internal PagePool Pool { get; }

    /// <summary>Number of sequences that there is room for.</summary>
    internal int Slots => _sequences.Length;

    /// <summary>Bytes of the page table.</summary>
    internal long Bytes => _pages.Bytes;

    /// <summary>The present sequences.</summary>
    internal IEnumerable<Sequence> InUse => _sequences.OfType<Sequence>();

    /// <summary>The sequence in a slot.</summary>
    internal Sequence this[int slot] => _sequences[slot]!;

    /// <summary>Dense tokens of the sequence that has most.</summary>
    internal int MostDense => Most(sequence => sequence.Dense);

    /// <summary>Compressed tokens of the sequence that has most.</summary>
    internal int MostCompressed => Most(sequence => sequence.Compressed);

    /// <summary>The sequence in a slot; null if it is free.</summary>
    internal Sequence? Find(int slot) => _sequences[slot];

    /// <summary>Bytes of the page table for a number of slots, and of pages of each.</summary>
    internal static long BytesOf(int slots, int pages) => (long)slots * pages * sizeof(int);

    /// <summary>Makes room for that many sequences. Page numbers are copied, never a page.</summary>
    internal void Grow(int slots)
    {
        PageTable table = new(slots, _pages.Capacity, _device);
        Array.Resize(ref _sequences, slots);
        Replace(table);
    }

    /// <summary>Puts a new sequence in a free slot.</summary>
    internal void Add(int slot) => _sequences[slot] = new Sequence();

    /// <summary>Makes room for the pages of a sequence.</summary>
    internal void Reserve(int pages)
    {
        if (pages > _pages.Capacity)
        {
            Replace(new PageTable(Slots, Math.Max(Math.Max(SmallestCapacity, pages), 2 * _pages.Capacity), _device));
        }
    }

    /// <summary>Adds a sequence in a free slot that continues another one and shares its pages.</summary>
    internal void Continue(int slot, Sequence parent)
    {
        Reserve(parent.NextPlace);
        Sequence sequence = parent.Copy();
        foreach (int page in sequence.Pages)
        {
            Pool.Share(page);
        }

        _sequences[slot] = sequence;
        SetPages(slot);
        _pages.Upload();
    }

    /// <summary>Removes a sequence from its slot.</summary>
    internal void Remove(int slot)
    {
        ReturnPages(slot, compressed: 0);
        _sequences[slot] = null;
    }

    /// <summary>Plans a step, and rents the pages that it needs. The sequences don't change.</summary>
    /// <param name="plan">The plan to make.</param>
    /// <param name="slots">The slot of each row.</param>
    /// <param name="tokens">Queries of the row that has most.</param>
    /// <param name="counts">Queries of each row; all if empty.</param>
    /// <param name="kind">What the step does.</param>
    /// <exception cref="CacheBudgetException">There are not enough pages.</exception>
    internal void Plan(StepPlan plan, ReadOnlySpan<int> slots, int tokens, ReadOnlySpan<int> counts, StepKind kind)
    {
        plan.Begin(slots.Length, tokens);
        int most = 0;
        for (int b = 0; b < slots.Length; b++)
        {
            plan.Set(b, slots[b], this[slots[b]], counts.IsEmpty ? tokens : counts[b], kind, Rules);
            most = Math.Max(most, plan.NextCompressed(b) / Rules.GroupSize);
        }

        try
        {
            Rent(plan);
            Reserve(most);
            SetNewPages(plan);
            _pages.Upload();
            plan.Upload();
        }
        catch
        {
            Rollback(plan);
            throw;
        }
    }

    /// <summary>The addresses of a step's numbers, the page table and the table of slabs, and the number of slabs passed to native
    /// code.</summary>
    /// <param name="plan">The step.</param>
    /// <param name="moves">How often dense data has moved.</param>
    internal TableAddresses AddressOf(StepPlan plan, int moves)
    {
        NativeBlocks blocks = Pool.Place(default);
        return new TableAddresses(plan.Address, (nint)_pages.Pointer, _pages.Capacity, (nint)blocks.Slabs, blocks.SlabCount, Pool.Moves + moves);
    }

    /// <summary>Updates the sequences to their state after a step.</summary>
    internal void Commit(StepPlan plan)
    {
        for (int b = 0; b < plan.Batch; b++)
        {
            Sequence sequence = this[plan.Slots[b]];
            sequence.Position += plan.SinksTaken[b] + plan.LengthAfter(b) - plan.Length(b);
            sequence.Sinks += plan.SinksTaken[b];
            sequence.Length = plan.LengthAfter(b);
            sequence.Compressed = plan.NextCompressed(b);
            sequence.Pages.AddRange(plan.NewPages(b));
            ReleasePages(sequence);
        }
    }

    /// <summary>Returns the pages that a step rented.</summary>
    internal void Rollback(StepPlan plan)
    {
        for (int b = 0; b < plan.Batch; b++)
        {
            Array.ForEach(plan.NewPages(b), Pool.Return);
            plan.Add(b, []);
        }
    }

    /// <summary>Number of compressed tokens that a sequence keeps when it is shortened. What the sliding window released can't be restored,
    /// but nothing sees it.</summary>
    internal int CompressedAt(Sequence sequence, int length) => length == 0
        ? 0
        : Math.Min(sequence.Compressed, Math.Max(Rules.Due(length), sequence.Released * Rules.GroupSize));

    /// <summary>Shortens a sequence.</summary>
    /// <param name="slot">Its slot.</param>
    /// <param name="tokens">Tokens that remain, including sinks.</param>
    internal void Shorten(int slot, int tokens)
    {
        Sequence sequence = this[slot];
        int length = Math.Max(0, tokens - Rules.SinkTokens);
        int compressed = CompressedAt(sequence, length);
        (sequence.Position, sequence.Scattered) = length == 0 ? (tokens, 0) : (sequence.Position - (sequence.Tokens - tokens), sequence.Scattered);
        ReturnPages(slot, compressed);
        (sequence.Length, sequence.Compressed, sequence.Sinks) = (length, compressed, Math.Min(tokens, Rules.SinkTokens));
        if (length == 0)
        {
            sequence.Released = 0;
        }
    }

    /// <summary>Reduces a sequence to some of its tokens.</summary>
    /// <param name="slot">Its slot.</param>
    /// <param name="length">Number of tokens that remain after the sinks.</param>
    /// <param name="compressed">How many of them are compressed.</param>
    /// <param name="latest">How many of them are the latest ones, without a gap.</param>
    /// <param name="pages">Pages that hold the compressed ones, in place of its own.</param>
    internal void Keep(int slot, int length, int compressed, int latest, int[] pages)
    {
        Sequence sequence = this[slot];
        ReturnPages(slot, compressed: 0);
        sequence.Pages.AddRange(pages);
        sequence.Scattered = sequence.Sinks + length - Math.Min(latest, sequence.Tokens - sequence.Scattered);
        (sequence.Length, sequence.Compressed) = (length, compressed);
        SetPages(slot);
        _pages.Upload();
    }

    /// <summary>Puts a sequence in a slot whose pages were filled from elsewhere.</summary>
    internal void Restore(int slot, Sequence sequence)
    {
        Reserve(sequence.NextPlace);
        _sequences[slot] = sequence;
        SetPages(slot);
        _pages.Upload();
    }

    /// <summary>The blocks for native code, with the page table starting at a slot.</summary>
    internal NativeBlocks Place(NativeBlocks blocks, int layer, int firstSlot) => Pool.Place(
        blocks with
        {
            PageBlocks = Rules.PageBlocks,
            PageCapacity = _pages.Capacity,
            Pages = _pages.Pointer + (firstSlot * (long)_pages.Capacity),
        },
        layer);

    public void Dispose()
    {
        GC.SuppressFinalize(this);
        for (int slot = 0; slot < Slots; slot++)
        {
            if (_sequences[slot] is not null)
            {
                ReturnPages(slot, compressed: 0);
            }
        }

        Pool.Dispose();
        _pages.Dispose();
    }

    // Gives each row the pages that it needs. It is known before the first one is taken that there are enough.
    private void Rent(StepPlan plan)
    {
        int needed = 0;
        for (int b = 0; b < plan.Batch; b++)
        {
            needed = checked(needed + Needed(plan, b));
        }

        Pool.Require(needed);
        for (int b = 0; b < plan.Batch; b++)
        {
            List<int> pages = this[plan.Slots[b]].Pages;
            if (Needed(plan, b) is int count and > 0)
            {
                plan.Add(b, Pool.Rent(count, pages.Count, pages.Count == 0 ? -1 : pages[^1]));
            }
        }
    }

    private int Most(Func<Sequence, int> number)
    {
        int most = 0;
        foreach (Sequence? sequence in _sequences)
        {
            most = sequence is null ? most : Math.Max(most, number(sequence));
        }

        return most;
    }

    private void SetNewPages(StepPlan plan)
    {
        for (int b = 0; b < plan.Batch; b++)
        {
            int place = this[plan.Slots[b]].NextPlace;
            foreach (int page in plan.NewPages(b))
            {
                _pages.Set(plan.Slots[b], place++, page);
            }
        }
    }

    private int Needed(StepPlan plan, int row) =>
        Math.Max(0, (plan.NextCompressed(row) / Rules.GroupSize) - this[plan.Slots[row]].NextPlace);

    // Reduces a sequence to the pages of that many compressed tokens.
    private void ReturnPages(int slot, int compressed)
    {
        Sequence sequence = this[slot];
        int kept = Math.Clamp((compressed / Rules.GroupSize) - sequence.Released, 0, sequence.Pages.Count);
        for (int i = kept; i < sequence.Pages.Count; i++)
        {
            Pool.Return(sequence.Pages[i]);
        }

        sequence.Pages.RemoveRange(kept, sequence.Pages.Count - kept);
    }

    private void ReleasePages(Sequence sequence)
    {
        int released = Rules.UnseenPages(sequence) - sequence.Released;
        if (released > 0)
        {
            sequence.Pages.GetRange(0, released).ForEach(Pool.Return);
            sequence.Pages.RemoveRange(0, released);
            sequence.Released += released;
        }
    }

    private void SetPages(int slot)
    {
        Sequence sequence = this[slot];
        for (int i = 0; i < sequence.Pages.Count; i++)
        {
            _pages.Set(slot, sequence.Released + i, sequence.Pages[i]);
        }
    }

    private void Replace(PageTable table)
    {
        _pages.Dispose();
        _pages = table;
        for (int slot = 0; slot < Slots; slot++)
        {
            if (_sequences[slot] is not null)
            {
                SetPages(slot);
            }
        }

        _pages.Upload();
    }
}
