using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// Selecting channels if magnitudes alone don't decide.
internal sealed partial class LayerStorage
{
    /// <summary>What the selection of keys gathers; null if it gathers nothing.</summary>
    internal ChannelStatistics? KeyStatistics { get; private set; }

    /// <summary>What the selection of values gathers; null if it gathers nothing.</summary>
    internal ChannelStatistics? ValueStatistics { get; private set; }

    /// <summary>Whether its selections do work in a step that other steps don't do.</summary>
    internal bool SelectsByOperations(StepPlan plan) =>
        ((KeyStatistics is not null || ValueStatistics is not null) && ChannelStatistics.Counts(plan))
        || ((MakesMasks(keys: true) || MakesMasks(keys: false)) && (MostDue(plan, isEarly: true) > 0 || MostDue(plan, isEarly: false) > 0));

    private ChannelSelection Selection(bool keys) => keys ? Options.KeySelection : Options.ValueSelection;

    private NativeFormat FormatOf(bool keys) => keys ? Format.Keys : Format.Values;

    private bool MakesMasks(bool keys) => Selection(keys).MakesMasks && FormatOf(keys).Keep < _shape.HeadDim;

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
    }

    // The masks of what a step compresses, Int32 [batch, num_kv_heads, tokens, words]; null where none are needed.
    private Tensor? Masks(StepPlan plan, bool ofKeys, Tensor? newTokens, bool isEarly)
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
                int length = plan.Length(b), stored = Math.Min(length, end) - first;
                List<Tensor> parts = [.. Window(ofKeys, plan.Slots[b], first, Math.Max(0, stored))];
                if (end > length)
                {
                    int start = Math.Max(first, length);
                    parts.Add(newTokens![b].narrow(1, start - length, end - start));
                }

                Tensor tokens = parts.Count == 1 ? parts[0] : cat(parts, 1);
                masks[b].narrow(1, 0, end - first).copy_(Mask(ofKeys, tokens, first)[0]);
            }
        }

        return masks;
    }

    // Int32 [1, num_kv_heads, tokens, words] for the tokens [num_kv_heads, tokens, head_dim] from `first` on.
    private Tensor Mask(bool ofKeys, Tensor tokens, int first)
    {
        ChannelSelection selection = Selection(ofKeys);
        NativeFormat format = FormatOf(ofKeys);
        if (selection.Rule == SelectionRule.PerChannel)
        {
            return MustafarOps.PackMask(LargestOfChannels(tokens, NativeConstants.BlockTokens * format.Keep / _shape.HeadDim).unsqueeze(0));
        }

        Tensor chosen = selection.Function!(new SelectionInput(tokens, _index, first, format.Keep))
            ?? throw new InvalidOperationException($"Expected a tensor from the function of selection '{selection.Name}', but got null.");
        string name = $"selection '{selection.Name}'";
        if (selection.Rule == SelectionRule.Scores)
        {
            TensorAccess.Validate(chosen, name, ScalarType.Float32, _shape.Device, tokens.shape);
            return MustafarOps.PruneBitmap(chosen.unsqueeze(0), format.Keep, (SparsityPattern)format.Pattern);
        }

        TensorAccess.Validate(chosen, name, ScalarType.Bool, _shape.Device, tokens.shape);
        int room = NativeConstants.BlockTokens * format.Keep;
        long largest = chosen.reshape(_shape.NumKvHeads, -1, NativeConstants.BlockTokens * (long)_shape.HeadDim).sum(2).max().item<long>();
        return largest <= room
            ? MustafarOps.PackMask(chosen.unsqueeze(0))
            : throw new ArgumentException(
                $"Expected at most {room} channels in {NativeConstants.BlockTokens} tokens of a head, {format.Keep} of each, but got {largest}.", name);
    }

    // True at the tokens of largest magnitude of each channel, `count` of every 32.
    private Tensor LargestOfChannels(Tensor tokens, int count)
    {
        Tensor magnitudes = tokens.abs().reshape(_shape.NumKvHeads, -1, NativeConstants.BlockTokens, _shape.HeadDim);
        Tensor largest = magnitudes.topk(count, 2).indexes;
        return zeros_like(magnitudes, dtype: ScalarType.Bool).scatter_(2, largest, ones_like(largest, dtype: ScalarType.Bool)).reshape(tokens.shape);
    }
}
