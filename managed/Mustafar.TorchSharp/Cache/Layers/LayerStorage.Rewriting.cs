using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// Tokens that a selection's function rewrites when they are compressed.
internal sealed unsafe partial class LayerStorage
{
    // What is to be stored of the tokens that a step compresses, by its rows; nothing where they are stored as they are.
    private List<(int Row, Tensor Tokens)> Rewrite(StepPlan plan, bool ofKeys, StepTokens tokens, bool isEarly)
    {
        List<(int Row, Tensor Tokens)> rewritten = [];
        for (int b = 0; b < plan.Batch && Selection(ofKeys).Rewrites; b++)
        {
            (int first, int end) = plan.Due(b, isEarly);
            if (end > first)
            {
                using DisposeScope scope = NewDisposeScope();
                Tensor answer = Ask(ofKeys, DueTokens(plan, b, ofKeys, tokens, isEarly), first, _shape.DType);

                // A copy, as the function may give its tokens back, whose places new ones take.
                rewritten.Add((b, empty(answer.shape, dtype: _shape.DType, device: _shape.Device).copy_(answer).MoveToOuterDisposeScope()));
            }
        }

        return rewritten;
    }

    // Puts them in the place of what was compressed as it is.
    private void Store(StepPlan plan, bool ofKeys, List<(int Row, Tensor Tokens)> rewritten, bool isEarly)
    {
        foreach ((int row, Tensor tokens) in rewritten)
        {
            int slot = plan.Slots[row], page = plan.Due(row, isEarly).First / Options.GroupSize;
            Native.NativeBlocks blocks = Blocks(ofKeys, slot);
            Compress(ofKeys, slot, tokens, blocks.Pages + page, blocks.PageCapacity - page);
        }
    }
}
