using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Reads additive attention masks: which ones are causal, with or without padding on the left of some sequences.</summary>
/// <param name="window">How many of the latest tokens the cache shows to a query; what a mask says about older ones is ignored.</param>
internal sealed class AttentionMask(int? window)
{
    private const long BlockElements = 8 << 20; // one byte each in several temporaries

    private static readonly Scalar Hidden = -1e4;

    /// <summary>Finds the padding on the left of each sequence, and checks that the mask is causal otherwise.</summary>
    /// <param name="known">What has already been read in this step.</param>
    /// <param name="step">New tokens and their mask.</param>
    /// <param name="start">Number of tokens before them.</param>
    /// <param name="padding">Known padding of each sequence; all zero at the start of a conversation.</param>
    /// <returns>Padding of each sequence, including that of the new tokens at the start of a conversation. It stays hidden, whatever later
    /// masks say about it.</returns>
    /// <exception cref="NotSupportedException">The mask is not causal, or pads elsewhere than before a conversation's first
    /// tokens.</exception>
    internal int[] Read(ConversationStep known, AttentionStep step, int start, int[] padding)
    {
        int tokens = checked((int)step.Query.size(2));
        if (step.Mask is not Tensor mask)
        {
            return tokens == 1
                ? padding
                : throw Unsupported($"{tokens} tokens without a mask see each other in both directions");
        }

        if (known.Find(mask, start, padding) is int[] found)
        {
            return found;
        }

        using DisposeScope scope = NewDisposeScope();
        int[] read = Read(Shaped(mask, step, start, tokens), start, tokens, padding);
        known.Add(mask, start, padding, read);
        return read;
    }

    // [batch or 1, n, columns] with columns = start + n, or 1 if only the part of a single new token is given.
    private static Tensor Shaped(Tensor mask, AttentionStep step, int start, int tokens)
    {
        long batch = step.Query.size(0);
        long[] shape = mask.Sizes();
        long columns = shape.Length == 0 ? 0 : shape[^1];
        bool fits = shape.Length switch
        {
            2 => shape[0] == tokens,
            4 => (shape[0] == batch || shape[0] == 1) && shape[1] == 1 && shape[2] == tokens,
            _ => false,
        };
        if (!fits || !(columns == start + tokens || (columns == 1 && tokens == 1)) || mask.dtype == ScalarType.Bool)
        {
            throw Unsupported(
                $"expected numbers to add, [{batch}, 1, {tokens}, {start + tokens}], but got {mask.dtype} [{string.Join(", ", shape)}]");
        }

        return mask.reshape(shape.Length == 2 ? 1 : shape[0], tokens, columns);
    }

    private int[] Read(Tensor mask, int start, int tokens, int[] padding)
    {
        // For a single token most masks show everything, which one check finds out.
        if (tokens == 1 && !mask.any().item<bool>())
        {
            return padding;
        }

        long columns = mask.size(2);
        int[] padded = start == 0 && columns > 1 ? HiddenColumns(mask, padding.Length) : padding;
        Tensor first = tensor(padded.Select(count => (long)count).ToArray(), device: mask.device).reshape(-1, 1, 1);
        Tensor column = Scalars.Range(0, columns, mask.device).reshape(1, 1, -1), row = Scalars.Range(start, tokens, mask.device).reshape(1, -1, 1);
        // In blocks of rows, since a prompt's mask may take much of the device's memory.
        long block = Math.Max(1, BlockElements / (mask.size(0) * columns));
        List<Tensor> additive = [], causal = [];
        for (long begin = 0; begin < tokens; begin += block)
        {
            using DisposeScope scope = NewDisposeScope();
            long count = Math.Min(block, tokens - begin);
            Tensor part = mask.narrow(1, begin, count), visible = part.eq(Scalars.Zero);
            additive.Add(visible.logical_or(part.le(Hidden)).all().MoveToOuterDisposeScope());
            causal.Add(Fits(visible, column, row.narrow(1, begin, count), first, start, tokens).MoveToOuterDisposeScope());
        }

        bool[] holds = stack([stack(additive).all(), stack(causal).all()]).cpu().data<bool>().ToArray();
        return !holds[0] ? throw Unsupported("it adds numbers to the scores of tokens that are visible")
            : !holds[1] ? throw Unsupported(columns == 1
                ? "it hides all tokens of a sequence"
                : "it is not causal, or has padding elsewhere than before a conversation's first tokens, or has a sliding window " +
                    $"that is not in {nameof(MustafarOptions)}.{nameof(MustafarOptions.SlidingWindow)}")
            : padded;
    }

    // Whether some rows agree with what the cache shows to them. visible: [batch or 1, rows, columns].
    private Tensor Fits(Tensor visible, Tensor column, Tensor row, Tensor first, int start, int tokens)
    {
        if (visible.size(2) == 1)
        {
            return visible.all();
        }

        Tensor expected = column.le(row).logical_and(column.ge(first));
        // What a padding token sees does not matter, and earlier padding is not cached.
        Tensor fits = visible.eq(expected).logical_or(row.lt(first));
        if (start > 0)
        {
            fits = fits.logical_or(column.lt(first));
        }

        if (window is int tokensSeen)
        {
            Scalar past = 1L - tokensSeen;
            fits = fits.logical_or(column.lt(row.add(past)));
            GC.KeepAlive(past);
            if (tokens == 1 && start >= tokensSeen)
            {
                // Microsoft.ML.GenAI hides everything from a token once its past is longer than the window, which has no meaning.
                fits = fits.logical_or(visible.any(-1, keepdim: true).logical_not());
            }
        }

        return fits.all();
    }

    // The last row that would otherwise see a column tells whether it is padding.
    private int[] HiddenColumns(Tensor mask, int batch)
    {
        long columns = mask.size(2);
        long[] rows = new long[columns];
        for (int i = 0; i < columns; i++)
        {
            rows[i] = Math.Min(i + (window ?? columns) - 1, columns - 1);
        }

        Tensor index = tensor(rows, device: mask.device).reshape(1, 1, columns).expand(mask.size(0), 1, columns);
        long[] counts = mask.gather(1, index).eq(Scalars.Zero).sum(2).to(ScalarType.Int64).cpu().data<long>().ToArray();
        int[] padded = new int[batch];
        for (int i = 0; i < batch; i++)
        {
            long count = counts[counts.Length == 1 ? 0 : i];
            padded[i] = count > 0
                ? checked((int)(columns - count))
                : throw Unsupported("it hides all tokens of a sequence");
        }

        return padded;
    }

    private static NotSupportedException Unsupported(string reason) =>
        new($"A compressed cache does not support the model's attention mask: {reason}.");
}
