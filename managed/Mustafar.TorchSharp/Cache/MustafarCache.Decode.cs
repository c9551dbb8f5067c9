using Mustafar.Native;
using static TorchSharp.torch;

namespace Mustafar;

// The native calls of a step: appending tokens, with the pages they need, and attending to what is stored.
public sealed unsafe partial class MustafarCache
{
    // The work of Forward; what it leaves behind when it fails is for GoBack to undo.
    private Tensor Step(Tensor query, Tensor keys, Tensor values, double? scale, ReadOnlySpan<int> counts)
    {
        int tokens = checked((int)keys.size(2));
        Tensor output;
        if (tokens == 1)
        {
            AppendNew(keys, values, counts);
            output = AttendTokens(query, null, null, scale, counts);
        }
        else if (Length == 0)
        {
            output = AttendPrompt(query, keys, values, scale, counts);
            AppendNew(keys, values, counts);
        }
        else
        {
            CheckRoom(tokens, counts);
            AppendTokens(null, null, default, lookahead: 1);
            output = tokens <= MostDecodeQueries && (_sinks is null || _sinks.AreFullFor(counts))
                ? AttendTokens(query, keys, values, scale, counts)
                : AttendChunk(query, keys, values, scale, counts);
            AppendNew(keys, values, counts);
        }

        return output;
    }

    // The sinks take what they miss, the rest goes to the others.
    private void AppendNew(Tensor keys, Tensor values, ReadOnlySpan<int> counts)
    {
        if (_sinks is null || _sinks.AreFullFor(counts))
        {
            AppendTokens(keys, values, counts, lookahead: 0);
        }
        else if (_sinks.Take(keys, values, counts) is (Tensor otherKeys, Tensor otherValues, int[] otherCounts))
        {
            AppendTokens(otherKeys, otherValues, otherCounts, lookahead: 0);
        }
    }

    // Remembers where the sequences stand.
    private void Mark()
    {
        _state.Lengths.CopyTo(_lengthsBefore);
        _state.Compressed.CopyTo(_compressedBefore);
        _sinks?.Mark();
    }

    // Undoes what was done since Mark. The ring still holds what it held: it has room for more than what may wait in it, and new tokens
    // come last, so none of them took the place of a token that is dense again.
    private void GoBack()
    {
        for (int b = 0; b < BatchSize; b++)
        {
            ReturnPages(b, _compressedBefore[b]);
            _state.Set(b, _lengthsBefore[b], _compressedBefore[b]);
        }

        _state.Upload();
        _sinks?.GoBack();
    }

    // Leaves a sequence the pages of so many compressed tokens.
    private void ReturnPages(int sequence, int compressed)
    {
        while (_pages.Count(sequence) > Math.Max(compressed / Options.GroupSize, _pages.Released(sequence)))
        {
            _pool.Return(_pages.RemoveLast(sequence));
        }
    }

    // How many tokens of a sequence are compressed that is so long, and so many longer soon.
    private int Due(int length, int lookahead) =>
        (int)NativeMethods.CompressedTokens(length, lookahead, Options.LocalWindow, Options.GroupSize);

    private void SetCounts(ReadOnlySpan<int> counts)
    {
        if (!counts.IsEmpty)
        {
            counts.CopyTo(_counts.Span);
            _counts.Upload();
        }
    }

    private static int NewTokens(int sequence, int tokens, ReadOnlySpan<int> counts) => counts.IsEmpty ? tokens : counts[sequence];

    // The longest length after new tokens; refuses more than the library counts.
    private int CheckRoom(int tokens, ReadOnlySpan<int> counts)
    {
        int most = int.MaxValue - NativeConstants.BlockTokens - Options.SinkTokens;
        long longest = 0;
        for (int b = 0; b < BatchSize; b++)
        {
            longest = Math.Max(longest, (long)_state.Lengths[b] + NewTokens(b, tokens, counts));
        }

        return longest <= most
            ? (int)longest
            : throw new ArgumentOutOfRangeException(nameof(tokens), tokens, $"Expected sequences of at most {most} tokens, but the new ones make {longest}.");
    }

    private void AppendTokens(Tensor? keys, Tensor? values, ReadOnlySpan<int> counts, int lookahead)
    {
        int tokens = keys is null ? 0 : checked((int)keys.size(2));
        int longest = CheckRoom(tokens, counts);
        SetCounts(counts);
        AddPages(tokens, counts, lookahead);
        for (int b = 0; b < BatchSize; b++)
        {
            int length = _state.Lengths[b] + NewTokens(b, tokens, counts);
            _state.NextLengths[b] = length;
            _state.NextCompressed[b] = Math.Max(_state.Compressed[b], Due(length, lookahead));
        }

        NativeContext context = TensorAccess.Context(Device);
        NativeAppend append = new()
        {
            Batch = BatchSize,
            NumSlots = BatchSize,
            NumKvHeads = NumKvHeads,
            NumTokens = tokens,
            Lookahead = lookahead,
            GroupSize = Options.GroupSize,
            LocalWindow = Options.LocalWindow,
            TailCapacity = _tailCapacity,
            MaxTokens = longest,
            Counts = counts.IsEmpty ? null : _counts.Pointer,
            Lengths = _state.LengthsPointer,
            Compressed = _state.CompressedPointer,
            NewLengths = _state.NextLengthsPointer,
            NewCompressed = _state.NextCompressedPointer,
            NewKeys = keys is null ? default : TensorAccess.Dense(keys),
            NewValues = values is null ? default : TensorAccess.Dense(values),
            Keys = Blocks(keys: true),
            Values = Blocks(keys: false),
            TailKeys = _denseTailKeys,
            TailValues = _denseTailValues,
        };
        int status = NativeMethods.AppendTokens(&context, &append);
        GC.KeepAlive(keys);
        GC.KeepAlive(values);
        NativeCall.Check(status);
        _state.Commit();
    }

    // Gives each sequence the pages that it will need.
    private void AddPages(int tokens, ReadOnlySpan<int> counts, int lookahead)
    {
        int most = 0;
        for (int b = 0; b < BatchSize; b++)
        {
            int needed = Due(_state.Lengths[b] + NewTokens(b, tokens, counts), lookahead) / Options.GroupSize;
            _pagesAdded[b] = Math.Max(0, needed - _pages.Count(b));
            most = Math.Max(most, _pagesAdded[b] == 0 ? 0 : needed);
        }

        if (most == 0)
        {
            return;
        }

        _pages.Reserve(most);
        for (int b = 0; b < BatchSize; b++)
        {
            if (_pagesAdded[b] > 0)
            {
                foreach (int page in _pool.Rent(_pagesAdded[b], _pages.Count(b) - _pages.Released(b), _pages.Last(b)))
                {
                    _pages.Add(b, page);
                }
            }
        }

        _pages.Upload();
    }

    // keys and values: the queries' own tokens if they are not in the cache yet.
    private Tensor AttendTokens(Tensor query, Tensor? keys, Tensor? values, double? scale, ReadOnlySpan<int> counts)
    {
        int queries = checked((int)query.size(2));
        query = TensorAccess.WithContiguousRows(query);
        Tensor output = empty([query.size(0), query.size(1), queries, HeadDim], dtype: DType, device: Device);
        Tensor? logSumExp = _sinks is null
            ? null : empty([query.size(0), query.size(1), queries], dtype: ScalarType.Float32, device: Device);
        SetCounts(counts);
        int longest = keys is null ? _state.Longest : AddFresh(queries, counts);
        NativeContext context = TensorAccess.Context(Device);
        NativeAttention attention = new()
        {
            Batch = BatchSize,
            NumSlots = BatchSize,
            NumHeads = checked((int)query.size(1)),
            NumKvHeads = NumKvHeads,
            NumQueries = queries,
            NumFresh = keys is null ? 0 : queries,
            TailCapacity = _tailCapacity,
            MaxTokens = longest,
            SlidingWindow = Options.SlidingWindow ?? 0,
            Scale = (float)(scale ?? 1 / Math.Sqrt(HeadDim)),
            Lengths = keys is null ? _state.LengthsPointer : _lengthsWithFresh.Pointer,
            Compressed = _state.CompressedPointer,
            QueryCounts = counts.IsEmpty ? null : _counts.Pointer,
            Query = TensorAccess.Dense(query),
            Output = TensorAccess.Dense(output),
            Keys = Blocks(keys: true),
            Values = Blocks(keys: false),
            TailKeys = _denseTailKeys,
            TailValues = _denseTailValues,
            FreshKeys = keys is null ? default : TensorAccess.Dense(keys),
            FreshValues = values is null ? default : TensorAccess.Dense(values),
            LogSumExp = logSumExp is null ? null : (float*)TensorAccess.Pointer(logSumExp),
        };
        long bytes;
        NativeCall.Check(NativeMethods.AttentionWorkspace(&context, &attention, &bytes));
        attention.Workspace = TensorAccess.Pointer(Workspace(bytes));
        attention.WorkspaceBytes = bytes;
        int status = NativeMethods.AttentionForward(&context, &attention);
        GC.KeepAlive(query);
        GC.KeepAlive(keys);
        GC.KeepAlive(values);
        NativeCall.Check(status);
        return _sinks is null
            ? output
            : _sinks.Merge(query, output, logSumExp!, attention.Scale, QueryPositions(queries, counts, fresh: keys is not null), counts);
    }

    // Where each sequence's first query stands: after the cached tokens, or at the last of them.
    private int[] QueryPositions(int queries, ReadOnlySpan<int> counts, bool fresh)
    {
        int[] positions = new int[BatchSize];
        for (int b = 0; b < BatchSize; b++)
        {
            positions[b] = _lengths[b] - (fresh ? 0 : NewTokens(b, queries, counts));
        }

        return positions;
    }

    // Lengths with tokens that are not in the cache yet; returns the longest.
    private int AddFresh(int tokens, ReadOnlySpan<int> counts)
    {
        int longest = 0;
        for (int b = 0; b < BatchSize; b++)
        {
            int length = _state.Lengths[b] + NewTokens(b, tokens, counts);
            _lengthsWithFresh.Span[b] = length;
            longest = Math.Max(longest, length);
        }

        _lengthsWithFresh.Upload();
        return longest;
    }

    private Tensor Workspace(long bytes)
    {
        if (_workspace is null || _workspace.numel() < bytes)
        {
            // Not held while the larger one is made, which may fail.
            _workspace?.Dispose();
            _workspace = null;
            using IDisposable mode = inference_mode(false);
            _workspace = TensorAccess.Workspace(bytes, Device).DetachFromDisposeScope();
        }

        return _workspace;
    }
}
