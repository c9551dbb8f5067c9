using static TorchSharp.torch;

namespace Mustafar;

// The attention that tokens receive, by which a selection of values weighs them.
internal sealed unsafe partial class LayerStorage
{
    // What the tokens that a step compresses of a row receive from the latest queries, up to the one with whose token they fall due:
    // Float32 [num_kv_heads, tokens]; null if no query is known.
    private Tensor? Received(StepPlan plan, int row, StepTokens tokens, bool isEarly)
    {
        (int first, int end) = plan.Due(row, isEarly);
        int length = plan.Length(row), sinks = plan.SinksBefore[row], added, asked;
        if (isEarly)
        {
            // The first of the new tokens makes them due.
            added = asked = Math.Min(1, plan.Counts[row]);
        }
        else
        {
            (added, asked) = (plan.LengthAfter(row) - length, plan.Counts[row]);
            sinks += plan.SinksTaken[row];
        }

        if (RecentQueries!.Latest(plan.Slots[row], tokens.Query![row].narrow(1, 0, asked)) is not Tensor queries)
        {
            return null;
        }

        // Of a sliding window, what the first of the queries sees: the others may be gone.
        int count = (int)queries.size(1);
        int seen = Options.SlidingWindow is int window ? Math.Clamp(length + added - count + 1 - window, 0, first) : 0;
        Tensor keys = Gather(plan.Slots[row], sinks, seen, first, length, tokens.Keys[row].narrow(1, 0, added).unsqueeze(0), ofKeys: true)[0];
        Tensor received = AttentionHistory.Received(queries, (int)keys.size(1) - count, keys, tokens.Scale, Options.SlidingWindow, sinks);
        return received.narrow(1, sinks + first - seen, end - first);
    }
}
