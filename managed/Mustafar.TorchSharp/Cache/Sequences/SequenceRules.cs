using Mustafar.Native;

namespace Mustafar;

/// <summary>The rules, common to all layers, for which tokens are compressed and which pages are still needed.</summary>
/// <param name="GroupSize">Tokens of a page.</param>
/// <param name="LocalWindow">Size of the recent window, whose tokens are never compressed.</param>
/// <param name="SinkTokens">Number of first tokens that are stored separately. Lengths and positions below don't count them.</param>
/// <param name="SlidingWindow">The largest window of any layer; null if a layer sees all tokens.</param>
/// <param name="Eviction">Which tokens are removed; null for none.</param>
internal sealed record SequenceRules(int GroupSize, int LocalWindow, int SinkTokens, int? SlidingWindow, TokenEviction? Eviction)
{
    /// <summary>The rules of layers with these options.</summary>
    /// <exception cref="ArgumentException">There is no layer, or layers differ in options that affect their common pages.</exception>
    internal static SequenceRules Of(IReadOnlyList<MustafarOptions> layers)
    {
        if (layers.Count == 0)
        {
            throw new ArgumentException("Expected the options of at least one layer, but got none.", nameof(layers));
        }

        MustafarOptions first = layers[0];
        for (int i = 1; i < layers.Count; i++)
        {
            MustafarOptions layer = layers[i];
            if (layer.Eviction != first.Eviction)
            {
                throw new ArgumentException(
                    $"Expected layers of the same {nameof(MustafarOptions.Eviction)}, since they share their pages, but layer {i} differs from layer 0.",
                    nameof(layers));
            }

            layer.Eviction?.Check(layer);
            if ((layer.GroupSize, layer.LocalWindow, layer.SinkTokens) != (first.GroupSize, first.LocalWindow, first.SinkTokens))
            {
                throw new ArgumentException(
                    $"Expected layers of the same GroupSize, LocalWindow and SinkTokens ({first.GroupSize}, {first.LocalWindow}, {first.SinkTokens}), since they share their pages, but layer {i} has {layer.GroupSize}, {layer.LocalWindow}, {layer.SinkTokens}.",
                    nameof(layers));
            }
        }

        first.Eviction?.Check(first);
        int? window = layers.Any(layer => layer.SlidingWindow is null) ? null : layers.Max(layer => layer.SlidingWindow);
        return new SequenceRules(first.GroupSize, first.LocalWindow, first.SinkTokens, window, first.Eviction);
    }

    /// <summary>Maximum number of tokens of a sequence after its sinks.</summary>
    internal int MostTokens => int.MaxValue - NativeConstants.BlockTokens - SinkTokens;

    /// <summary>Blocks of one KV head in a page.</summary>
    internal int PageBlocks => GroupSize / NativeConstants.BlockTokens;

    /// <summary>Number of places in the ring of dense tokens that always suffices: for the recent window, and the group that waits to be
    /// compressed.</summary>
    internal int TailCapacity => WholeBlocks(LocalWindow) + GroupSize;

    /// <summary>Number of places that the ring needs for now, at most <see cref="TailCapacity"/>: a short sequence takes no more than a
    /// dense one would.</summary>
    /// <param name="dense">Dense tokens of the sequence that has most.</param>
    /// <param name="compressed">Compressed tokens of the sequence that has most.</param>
    /// <param name="present">Present number of places.</param>
    /// <param name="isExact">Whether it may grow often: by each token while it is small.</param>
    internal int RingFor(int dense, int compressed, int present, bool isExact)
    {
        if (compressed > GroupSize)
        {
            return TailCapacity; // what is saved is more than this costs
        }

        bool grows = dense > present;
        int places = compressed > 0 ? WholeBlocks(dense + 1) // and the next token, for which it need not be enlarged at once
            : !grows ? present
            : !isExact || dense <= SmallRing ? WholeBlocks(dense)
            : dense <= 2 * SmallRing ? dense
            : WholeBlocks(dense + (dense / 8));
        return Math.Min(places, TailCapacity);
    }

    // Number of tokens from which a ring grows by whole blocks.
    private const int SmallRing = 64;

    private static int WholeBlocks(int tokens) =>
        (tokens + NativeConstants.BlockTokens - 1) / NativeConstants.BlockTokens * NativeConstants.BlockTokens;

    /// <summary>Number of compressed tokens of a sequence of this length that will soon grow by <paramref name="lookahead"/>.</summary>
    internal int Due(int length, int lookahead = 0) =>
        (int)NativeMethods.CompressedTokens(length, lookahead, LocalWindow, GroupSize);

    /// <summary>The first token that a query at a position sees in any layer.</summary>
    internal int FirstVisible(int position) => SlidingWindow is int window ? (int)Math.Max(0, position + 1L - window) : 0;

    /// <summary>How many of a sequence's first pages no query sees any more, even if it is shortened by up to a group.</summary>
    internal int UnseenPages(Sequence sequence) =>
        Math.Min(FirstVisible(Math.Max(0, sequence.Length - GroupSize)), sequence.Compressed) / GroupSize;

    /// <summary>Checks that queries at a sequence's last tokens don't see released tokens.</summary>
    /// <exception cref="InvalidOperationException">They do.</exception>
    internal void CheckQueries(Sequence sequence, long queries, int name)
    {
        int first = FirstVisible((int)Math.Max(0, sequence.Length - queries));
        int released = sequence.Released * GroupSize;
        if (first < released)
        {
            throw new InvalidOperationException(
                $"The first of {queries} queries would see token {SinkTokens + first} of sequence {name}, but the tokens before {SinkTokens + released} fell out of the sliding window of {SlidingWindow}.");
        }
    }

    /// <summary>Checks a shorter length: its next token must not see released tokens, and must have a position.</summary>
    /// <exception cref="InvalidOperationException">The length is not possible.</exception>
    internal void CheckLength(Sequence sequence, int length, int name)
    {
        if (length > 0 && SinkTokens + length < sequence.Scattered)
        {
            throw new InvalidOperationException(
                $"Sequence {name} can't be shortened to {SinkTokens + length} tokens: among its first {sequence.Scattered} others were evicted. Shorten it to no fewer, or to 0.");
        }

        int released = sequence.Released * GroupSize;
        if (length > 0 && FirstVisible(length) < released)
        {
            throw new InvalidOperationException(
                $"Sequence {name} can't be shortened to {SinkTokens + length} tokens: the next one would see token {SinkTokens + FirstVisible(length)}, but the tokens before {SinkTokens + released} fell out of the sliding window of {SlidingWindow}.");
        }
    }
}
