using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// Channel selection where magnitudes alone don't decide.
internal sealed partial class LayerStorage
{
    /// <summary>What the selection of keys gathers; null if it gathers nothing.</summary>
    internal ChannelStatistics? KeyStatistics { get; private set; }

    /// <summary>What the selection of values gathers; null if it gathers nothing.</summary>
    internal ChannelStatistics? ValueStatistics { get; private set; }

    /// <summary>The queries whose attention decides the selection of values; null if none are needed.</summary>
    internal RecentQueries? RecentQueries { get; }

    /// <summary>The option whose selection needs queries, and the selection; null if none does.</summary>
    internal (string Option, ChannelSelection Selection)? NeedsQueries =>
        KeyStatistics?.Queries is not null ? (nameof(MustafarOptions.KeySelection), Options.KeySelection)
            : RecentQueries is not null ? (nameof(MustafarOptions.ValueSelection), Options.ValueSelection)
            : null;

    /// <summary>Whether the selections need extra operations in this step.</summary>
    internal bool SelectsByOperations(StepPlan plan) =>
        RecentQueries is not null
        || ((KeyStatistics is not null || ValueStatistics is not null) && ChannelStatistics.Counts(plan))
        || ((ReadsDueTokens(keys: true) || ReadsDueTokens(keys: false)) && (MostDue(plan, isEarly: true) > 0 || MostDue(plan, isEarly: false) > 0));

    private ChannelSelection Selection(bool keys) => keys ? Options.KeySelection : Options.ValueSelection;

    private NativeFormat FormatOf(bool keys) => keys ? Format.Keys : Format.Values;

    private bool MakesMasks(bool keys) => Selection(keys).MakesMasks && FormatOf(keys).Keep < _shape.HeadDim;

    private bool ReadsDueTokens(bool keys) => MakesMasks(keys) || Selection(keys).Rewrites;

    private static int MostDue(StepPlan plan, bool isEarly)
    {
        int most = 0;
        for (int b = 0; b < plan.Batch; b++)
        {
            (int first, int end) = plan.Due(b, isEarly);
            most = Math.Max(most, end - first);
        }

        return most;
    }

    private void Gather(StepPlan plan, Tensor? query, Tensor keys, Tensor values)
    {
        KeyStatistics?.Add(plan, query, keys);
        ValueStatistics?.Add(plan, query, values);
        RecentQueries?.Add(plan, query!);
    }

    // The masks of the tokens that a step compresses, Int32 [batch, num_kv_heads, tokens, words]; null if none are needed.
    private Tensor? Masks(StepPlan plan, bool ofKeys, StepTokens tokens, bool isEarly)
    {
        int most = MakesMasks(ofKeys) ? MostDue(plan, isEarly) : 0;
        if (most == 0)
        {
            return null;
        }

        Tensor masks = zeros(
            [plan.Batch, _shape.NumKvHeads, most, MustafarOps.Words(_shape.HeadDim)], dtype: ScalarType.Int32, device: _shape.Device);
        for (int b = 0; b < plan.Batch; b++)
        {
            (int first, int end) = plan.Due(b, isEarly);
            if (end > first)
            {
                using DisposeScope scope = NewDisposeScope();
                Tensor due = DueTokens(plan, b, ofKeys, tokens, isEarly);
                Tensor? received = Selection(ofKeys).Rule == SelectionRule.PerChannelOutputAware ? Received(plan, b, tokens, isEarly) : null;
                masks[b].narrow(1, 0, end - first).copy_(Mask(ofKeys, due, first, received)[0]);
            }
        }

        return masks;
    }

    // The tokens that a step compresses in a row, [num_kv_heads, tokens, head_dim]: from the ring, then from the new tokens.
    private Tensor DueTokens(StepPlan plan, int row, bool ofKeys, StepTokens tokens, bool isEarly)
    {
        (int first, int end) = plan.Due(row, isEarly);
        int length = plan.Length(row), stored = Math.Min(length, end) - first;
        List<Tensor> parts = [.. Window(ofKeys, plan.Slots[row], first, Math.Max(0, stored))];
        if (end > length)
        {
            int start = Math.Max(first, length);
            parts.Add((ofKeys ? tokens.Keys : tokens.Values)[row].narrow(1, start - length, end - start));
        }

        return parts.Count == 1 ? parts[0] : cat(parts, 1);
    }

    // Int32 [1, num_kv_heads, tokens, words] for the tokens [num_kv_heads, tokens, head_dim] from `first` on. Some selections weigh each
    // token by the attention that it received.
    private Tensor Mask(bool ofKeys, Tensor tokens, int first, Tensor? received)
    {
        ChannelSelection selection = Selection(ofKeys);
        NativeFormat format = FormatOf(ofKeys);
        if (selection.IsPerChannel)
        {
            Tensor magnitudes = received is null ? tokens.abs() : tokens.abs().to(ScalarType.Float32).mul(received.unsqueeze(-1));
            return MustafarOps.PackMask(LargestOfChannels(magnitudes, NativeConstants.BlockTokens * format.Keep / _shape.HeadDim).unsqueeze(0));
        }

        bool areScores = selection.Rule == SelectionRule.Scores;
        Tensor chosen = Ask(ofKeys, tokens, first, areScores ? ScalarType.Float32 : ScalarType.Bool);
        if (areScores)
        {
            return MustafarOps.PruneBitmap(chosen.unsqueeze(0), format.Keep, (SparsityPattern)format.Pattern);
        }

        int room = NativeConstants.BlockTokens * format.Keep;
        long largest = chosen.reshape(_shape.NumKvHeads, -1, NativeConstants.BlockTokens * (long)_shape.HeadDim).sum(2).max().item<long>();
        return largest <= room
            ? MustafarOps.PackMask(chosen.unsqueeze(0))
            : throw new ArgumentException(
                $"Expected at most {room} channels in {NativeConstants.BlockTokens} tokens of a head, {format.Keep} of each, but got {largest}.",
                NameOf(selection));
    }

    // What a selection's function returns for the tokens [num_kv_heads, tokens, head_dim] from `first` on, in the same shape.
    private Tensor Ask(bool ofKeys, Tensor tokens, int first, ScalarType type)
    {
        ChannelSelection selection = Selection(ofKeys);
        Tensor answer = selection.Function!(new SelectionInput(tokens, _index, first, FormatOf(ofKeys).Keep))
            ?? throw new InvalidOperationException($"Expected a tensor from the function of selection '{selection.Name}', but got null.");
        TensorAccess.Validate(answer, NameOf(selection), type, _shape.Device, tokens.shape);
        return answer;
    }

    private static string NameOf(ChannelSelection selection) => $"selection '{selection.Name}'";

    // True at the `count` largest numbers of each channel in every 32 tokens, of equal ones at the earlier.
    private Tensor LargestOfChannels(Tensor magnitudes, int count)
    {
        Tensor groups = magnitudes.reshape(_shape.NumKvHeads, -1, NativeConstants.BlockTokens, _shape.HeadDim);
        Tensor largest = sort(groups, 2, descending: true, stable: true).indices.narrow(2, 0, count);
        return zeros_like(groups, dtype: ScalarType.Bool).scatter_(2, largest, ones_like(largest, dtype: ScalarType.Bool)).reshape(magnitudes.shape);
    }
}
