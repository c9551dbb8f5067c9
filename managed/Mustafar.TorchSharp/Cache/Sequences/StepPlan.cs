using Mustafar.Native;
using TorchSharp;

namespace Mustafar;

/// <summary>What a step does to each of its sequences: computed and copied to the device once, then read by every layer.</summary>
/// <remarks>
/// Row b of a step is the sequence in slot <c>Slots[b]</c>. The arrays are at the same addresses in every step. The host computes all
/// numbers itself, and the sequences only change when a step is committed, so a step can be abandoned at any point.
/// </remarks>
internal sealed unsafe class StepPlan : IDisposable
{
    private readonly BackendArray<int> _numbers;
    private readonly int _slots;
    private readonly bool _isRepeated; // by graphs
    private readonly int[] _counts;
    private readonly int[] _sinksBefore;
    private readonly int[] _sinksTaken;
    private readonly int[] _nextCompressed;
    private readonly int[][] _newPages;

    /// <summary>Makes room for the plan of a step with at most that many sequences.</summary>
    internal StepPlan(int slots, torch.Device device)
    {
        (_slots, _isRepeated) = (slots, device.type != DeviceType.CPU);
        _numbers = new BackendArray<int>(BytesOf(slots) / sizeof(int), device);
        _counts = new int[slots];
        _sinksBefore = new int[slots];
        _sinksTaken = new int[slots];
        _nextCompressed = new int[slots];
        _newPages = new int[slots][];
        Array.Fill(_newPages, []);
    }

    private enum Part
    {
        Slots, QueryCounts, NewCounts, Positions, // [batch]
        Lengths, LengthsAfter, Compressed, Ready, Attended, // [slots]
        Count,
    }

    /// <summary>Number of rows in the step.</summary>
    internal int Batch { get; private set; }

    /// <summary>Tokens of the row that has most.</summary>
    internal int Tokens { get; private set; }

    /// <summary>Tokens of the longest sequence afterwards, without its sinks.</summary>
    internal int Longest { get; private set; }

    /// <summary>Dense tokens of the row that has most, before the step or after it.</summary>
    internal int MostDense { get; private set; }

    /// <summary>Compressed tokens of the row that has most after the step.</summary>
    internal int MostCompressed { get; private set; }

    /// <summary>Tokens that the step compresses, of all rows.</summary>
    internal long NewlyCompressed
    {
        get
        {
            long tokens = 0;
            for (int b = 0; b < Batch; b++)
            {
                tokens += NextCompressed(b) - Span(Part.Compressed)[Slots[b]];
            }

            return tokens;
        }
    }

    /// <summary>Whether something is compressed before the new tokens attend.</summary>
    internal bool CompressesFirst { get; private set; }

    /// <summary>Whether new tokens become sinks.</summary>
    internal bool TakesSinks { get; private set; }

    /// <summary>Slots in which new tokens overwrite dense ones that were there before the step.</summary>
    internal List<int> Overwritten { get; } = [];

    internal ReadOnlySpan<int> Slots => Span(Part.Slots)[..Batch];

    /// <summary>Number of queries of each row.</summary>
    internal ReadOnlySpan<int> Counts => _counts.AsSpan(0, Batch);

    /// <summary>Number of sinks of each row before the step.</summary>
    internal ReadOnlySpan<int> SinksBefore => _sinksBefore.AsSpan(0, Batch);

    /// <summary>How many of each row's new tokens become sinks.</summary>
    internal ReadOnlySpan<int> SinksTaken => _sinksTaken.AsSpan(0, Batch);

    /// <summary>Whether every row has the full number of queries.</summary>
    internal bool IsUniform => Counts.IndexOfAnyExcept(Tokens) < 0;

    /// <summary>Whether row b is the sequence in slot b.</summary>
    internal bool IsOrdered
    {
        get
        {
            for (int b = 0; b < Batch; b++)
            {
                if (Slots[b] != b)
                {
                    return false;
                }
            }

            return true;
        }
    }

    internal int* SlotsPointer => Pointer(Part.Slots);

    /// <summary>[batch] queries that the decode kernel handles: none of a row whose sinks are not complete before the step.</summary>
    internal int* QueryCountsPointer => Pointer(Part.QueryCounts);

    /// <summary>[batch] new tokens that don't become sinks.</summary>
    internal int* NewCountsPointer => Pointer(Part.NewCounts);

    /// <summary>[slots] tokens before the step.</summary>
    internal int* LengthsPointer => Pointer(Part.Lengths);

    /// <summary>[slots] tokens after it.</summary>
    internal int* LengthsAfterPointer => Pointer(Part.LengthsAfter);

    /// <summary>[slots] compressed tokens before the step.</summary>
    internal int* CompressedPointer => Pointer(Part.Compressed);

    /// <summary>[slots] compressed tokens when the new ones are appended.</summary>
    internal int* ReadyPointer => Pointer(Part.Ready);

    /// <summary>[slots] compressed tokens when the queries attend.</summary>
    internal int* AttendedPointer => Pointer(Part.Attended);

    /// <summary>Position of each row's first new token, Int32 [batch] on the device, in the current dispose scope.</summary>
    internal torch.Tensor Positions => _numbers.Tensor.narrow(0, (int)Part.Positions * _slots, Batch);

    /// <summary>The maximum number of tokens of a sequence that is passed to native code: for a step of one token, which a graph may
    /// repeat, a bound that stays the same for many steps.</summary>
    internal int MaxTokens => _isRepeated && Tokens == 1 ? StepBound.Of(Longest) : Longest;

    /// <summary>Address of its numbers.</summary>
    internal nint Address => (nint)_numbers.Pointer;

    internal long Bytes => _numbers.Bytes;

    /// <summary>Bytes of a plan on the device.</summary>
    internal static int BytesOf(int slots) => checked((int)Part.Count * slots * sizeof(int));

    /// <summary>Compressed tokens of a row when the queries attend.</summary>
    internal int Attended(int row) => Span(Part.Attended)[Slots[row]];

    /// <summary>Compressed tokens of a row after the step.</summary>
    internal int NextCompressed(int row) => _nextCompressed[row];

    /// <summary>The tokens of a row that are compressed before the new ones attend, or when they are appended.</summary>
    internal (int First, int End) Due(int row, bool isEarly)
    {
        int slot = Slots[row], ready = Span(Part.Ready)[slot];
        return isEarly ? (Span(Part.Compressed)[slot], ready) : (ready, _nextCompressed[row]);
    }

    /// <summary>Whether nothing of a row is compressed before the step.</summary>
    internal bool IsUncompressed(int row) => Span(Part.Compressed)[Slots[row]] == 0;

    /// <summary>Tokens of a row before the step, without its sinks.</summary>
    internal int Length(int row) => Span(Part.Lengths)[Slots[row]];

    /// <summary>Tokens of a row after the step, without its sinks.</summary>
    internal int LengthAfter(int row) => Span(Part.LengthsAfter)[Slots[row]];

    /// <summary>Position of a row's first query: that of its first new token, or of as many last tokens as there are queries.</summary>
    internal int FirstQuery(int row) => _sinksBefore[row] + _sinksTaken[row] + LengthAfter(row) - _counts[row];

    /// <summary>Queries of a row that the decode kernel attends.</summary>
    internal int KernelQueries(int row) => Span(Part.QueryCounts)[row];

    /// <summary>Whether the decode kernel attends any query.</summary>
    internal bool HasKernelQueries => Span(Part.QueryCounts)[..Batch].IndexOfAnyExcept(0) >= 0;

    /// <summary>Pages that were rented for a row.</summary>
    internal int[] NewPages(int row) => _newPages[row];

    /// <summary>Stores the pages that were rented for a row.</summary>
    internal void Add(int row, int[] pages) => _newPages[row] = pages;

    /// <summary>Begins a plan for that many rows.</summary>
    internal void Begin(int batch, int tokens)
    {
        (Batch, Tokens, Longest, MostDense, MostCompressed, CompressesFirst, TakesSinks) = (batch, tokens, 0, 0, 0, false, false);
        Overwritten.Clear();
        Array.Fill(_newPages, []);
    }

    /// <summary>Plans a row.</summary>
    /// <param name="row">The row.</param>
    /// <param name="slot">Its slot.</param>
    /// <param name="sequence">Its sequence.</param>
    /// <param name="count">Its number of queries.</param>
    /// <param name="kind">What is done with them.</param>
    /// <param name="rules">The rules of compression.</param>
    /// <exception cref="ArgumentOutOfRangeException">The sequence would exceed the library's maximum length.</exception>
    internal void Set(int row, int slot, Sequence sequence, int count, StepKind kind, SequenceRules rules)
    {
        int added = kind == StepKind.Attend ? 0 : count;
        int taken = Math.Min(rules.SinkTokens - sequence.Sinks, added);
        long longer = (long)sequence.Length + added - taken;
        if (longer > rules.MostTokens)
        {
            throw new ArgumentOutOfRangeException(
                nameof(count), count, $"Expected sequences of at most {rules.MostTokens} tokens, but the new ones would make {longer}.");
        }

        int length = (int)longer;
        // Several tokens attend before they are appended, a single one afterwards. If none is added, nothing becomes compressible.
        bool isFirst = kind == StepKind.Forward && Tokens > 1;
        int ready = isFirst ? Math.Max(sequence.Compressed, rules.Due(sequence.Length, lookahead: 1)) : sequence.Compressed;
        int next = kind == StepKind.Attend ? ready : Math.Max(ready, rules.Due(length));
        Span(Part.Slots)[row] = slot;
        Span(Part.QueryCounts)[row] = isFirst && sequence.Sinks < rules.SinkTokens ? 0 : count;
        Span(Part.NewCounts)[row] = added - taken;
        Span(Part.Lengths)[slot] = sequence.Length;
        Span(Part.LengthsAfter)[slot] = length;
        Span(Part.Compressed)[slot] = sequence.Compressed;
        Span(Part.Ready)[slot] = ready;
        Span(Part.Attended)[slot] = isFirst ? ready : next;
        Span(Part.Positions)[row] = sequence.Position;
        (_counts[row], _sinksBefore[row], _sinksTaken[row], _nextCompressed[row]) = (count, sequence.Sinks, taken, next);
        Longest = Math.Max(Longest, length);
        CompressesFirst |= ready > sequence.Compressed;
        MostCompressed = Math.Max(MostCompressed, next);
        MostDense = Math.Max(MostDense, Math.Max(sequence.Dense, length - next));
        TakesSinks |= taken > 0;
    }

    /// <summary>Finds the slots in which new tokens overwrite dense ones.</summary>
    /// <param name="ring">Number of places in the ring.</param>
    internal void FindOverwritten(int ring)
    {
        foreach (int slot in Slots)
        {
            int compressed = Span(Part.Compressed)[slot];
            if (compressed < Span(Part.Lengths)[slot] && Span(Part.LengthsAfter)[slot] - compressed > ring)
            {
                Overwritten.Add(slot);
            }
        }
    }

    /// <summary>Copies the plan to the device.</summary>
    internal void Upload() => _numbers.UploadChanged();

    public void Dispose() => _numbers.Dispose();

    private Span<int> Span(Part part) => _numbers.Span.Slice((int)part * _slots, _slots);

    private int* Pointer(Part part) => _numbers.Pointer + ((int)part * _slots);
}

/// <summary>What a step does.</summary>
internal enum StepKind
{
    /// <summary>Adds tokens, which attend.</summary>
    Forward,

    /// <summary>Adds tokens.</summary>
    Append,

    /// <summary>Attends from the last tokens.</summary>
    Attend,
}
