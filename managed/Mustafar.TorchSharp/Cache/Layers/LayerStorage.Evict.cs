using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// Keeping some of a sequence's tokens.
internal sealed unsafe partial class LayerStorage
{
    internal torch.Device Device => _shape.Device;

    internal int NumKvHeads => _shape.NumKvHeads;

    /// <summary>A sequence's keys (or values) as stored, dense [num_kv_heads, tokens, head_dim], sinks first.</summary>
    /// <param name="slot">Its slot.</param>
    /// <param name="sinks">Its sinks.</param>
    /// <param name="compressed">Its compressed tokens.</param>
    /// <param name="length">Its tokens after the sinks.</param>
    /// <param name="ofKeys">Keys or values.</param>
    internal Tensor Stored(int slot, int sinks, int compressed, int length, bool ofKeys) => Gather(slot, sinks, 0, compressed, length, null, ofKeys)[0];

    /// <summary>Compresses kept tokens of a sequence into pages that don't belong to it yet; nothing else changes.</summary>
    /// <param name="slot">Its slot.</param>
    /// <param name="tokens">The kept tokens after the sinks, Int64 [num_kv_heads, count].</param>
    /// <param name="compressed">How many of them are compressed.</param>
    /// <param name="pages">The pages for those.</param>
    /// <returns>The others, for the ring.</returns>
    internal Returning Keep(int slot, Tensor tokens, int compressed, BackendArray<int> pages)
    {
        Sequence sequence = _table[slot];
        int rest = checked((int)tokens.size(1)) - compressed;
        using DisposeScope scope = NewDisposeScope();
        (Tensor keys, Tensor values) = (Kept(ofKeys: true), Kept(ofKeys: false));
        return new Returning(slot, Ring(compressed, rest).MoveToOuterDisposeScope(), keys, values);

        Tensor Kept(bool ofKeys)
        {
            Tensor all = Stored(slot, 0, sequence.Compressed, sequence.Length, ofKeys);
            Tensor kept = all.gather(1, tokens.unsqueeze(-1).expand(-1, -1, _shape.HeadDim));
            if (compressed > 0)
            {
                Compress(ofKeys, slot, kept.narrow(1, 0, compressed), pages.Pointer, pages.Length);
            }

            return kept.narrow(1, compressed, rest).clone().MoveToOuterDisposeScope();
        }
    }

    // Compresses dense keys (or values) [num_kv_heads, tokens, head_dim] into pages, with the sequence's channel scales.
    private void Compress(bool ofKeys, int slot, Tensor rows, int* pages, long pageCapacity)
    {
        NativeContext context = TensorAccess.Context(_shape.Device);
        NativeBlocks blocks = Blocks(ofKeys, slot) with { PageCapacity = pageCapacity, Pages = pages };
        using Tensor batch = rows.unsqueeze(0);
        NativeDense dense = TensorAccess.Dense(batch);
        NativeCall.Check(NativeMethods.Compress(
            &context, 1, _shape.NumKvHeads, rows.size(1), &dense, null, null, ofKeys ? KeyScalesFrom(slot) : null, &blocks));
        GC.KeepAlive(batch);
    }
}
