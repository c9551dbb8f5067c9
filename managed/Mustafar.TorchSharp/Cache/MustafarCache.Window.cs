namespace Mustafar;

// The sliding window: which tokens a query still sees, and what becomes of the others. Sinks don't count here: positions are those past them.
public sealed unsafe partial class MustafarCache
{
    // The first token that a query at a position sees.
    private int FirstVisible(int position) =>
        Options.SlidingWindow is int window ? (int)Math.Max(0, position + 1L - window) : 0;

    // Gives back the pages that no query sees any more, even when the sequence is shortened by up to a group.
    private void ReleasePages()
    {
        if (Options.SlidingWindow is null)
        {
            return;
        }

        for (int b = 0; b < BatchSize; b++)
        {
            int unseen = FirstVisible(Math.Max(0, _state.Lengths[b] - Options.GroupSize));
            int pages = Math.Min(unseen, _state.Compressed[b]) / Options.GroupSize;
            while (_pages.Released(b) < pages)
            {
                _pool.Return(_pages.RemoveFirst(b));
            }
        }
    }

    // Refuses queries at the last tokens that would see what was released.
    private void CheckWindow(long queries)
    {
        for (int b = 0; b < BatchSize; b++)
        {
            int first = FirstVisible((int)Math.Max(0, _state.Lengths[b] - queries));
            int released = _pages.Released(b) * Options.GroupSize;
            if (first < released)
            {
                throw new InvalidOperationException(
                    $"The first of {queries} queries would see token {Options.SinkTokens + first} of sequence {b}, but the tokens before {Options.SinkTokens + released} fell out of the sliding window of {Options.SlidingWindow}.");
            }
        }
    }

    // Refuses lengths whose next token would see what was released.
    private void CheckWindow(ReadOnlySpan<int> lengths)
    {
        for (int b = 0; b < BatchSize; b++)
        {
            int released = _pages.Released(b) * Options.GroupSize;
            if (lengths[b] > 0 && FirstVisible(lengths[b]) < released)
            {
                throw new InvalidOperationException(
                    $"Sequence {b} can't be shortened to {Options.SinkTokens + lengths[b]} tokens: the next one would see token {Options.SinkTokens + FirstVisible(lengths[b])}, but the tokens before {Options.SinkTokens + released} fell out of the sliding window of {Options.SlidingWindow}.");
            }
        }
    }
}
