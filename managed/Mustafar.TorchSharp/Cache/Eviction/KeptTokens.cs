using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Checks a choice of tokens to keep in a sequence.</summary>
internal static class KeptTokens
{
    /// <summary>Throws if the tokens can't be kept.</summary>
    /// <param name="tokens">The tokens, Int64 [num_layers, num_kv_heads, count].</param>
    /// <param name="numLayers">Number of layers.</param>
    /// <param name="numKvHeads">Number of KV heads.</param>
    /// <param name="length">Number of tokens of the sequence.</param>
    /// <param name="sinks">How many of them are sinks.</param>
    /// <param name="sequence">Number of the sequence, for messages.</param>
    /// <returns>How many of the latest tokens are kept without a gap in every layer and head.</returns>
    /// <exception cref="ArgumentException">The tokens can't be kept.</exception>
    internal static int Check(Tensor tokens, int numLayers, int numKvHeads, int length, int sinks, int sequence)
    {
        if (tokens.dtype != ScalarType.Int64)
        {
            throw new ArgumentException($"Expected tokens as Int64, but got {tokens.dtype}.", nameof(tokens));
        }

        if (tokens.dim() != 3 || tokens.size(0) != numLayers || tokens.size(1) != numKvHeads || tokens.size(2) == 0)
        {
            throw new ArgumentException(
                $"Expected tokens of shape [{numLayers}, {numKvHeads}, count > 0], but got [{string.Join(", ", tokens.shape)}].", nameof(tokens));
        }

        using Tensor host = tokens.cpu().contiguous();
        long[] numbers = host.data<long>().ToArray();
        int count = checked((int)tokens.size(2)), latest = count;
        for (int row = 0; row < numLayers * numKvHeads; row++)
        {
            ReadOnlySpan<long> own = numbers.AsSpan(row * count, count);
            latest = Math.Min(latest, Latest(own, length));
            for (int i = 0; i < count; i++)
            {
                string? expected = own[i] < 0 || own[i] >= length ? $"tokens 0 to {length - 1} of sequence {sequence}"
                    : i > 0 && own[i] <= own[i - 1] ? "tokens in ascending order"
                    : i < sinks && own[i] != i ? $"the {sinks} attention sinks, tokens 0 to {sinks - 1}, among the tokens"
                    : i == count - 1 && count < sinks ? $"the {sinks} attention sinks, tokens 0 to {sinks - 1}, among the tokens"
                    : null;
                if (expected is not null)
                {
                    throw new ArgumentException(
                        $"Expected {expected}, but number {i} of layer {row / numKvHeads} and head {row % numKvHeads} is {own[i]}.", nameof(tokens));
                }
            }
        }

        return latest;
    }

    private static int Latest(ReadOnlySpan<long> tokens, int length)
    {
        int latest = 0;
        while (latest < tokens.Length && tokens[^(latest + 1)] == length - 1 - latest)
        {
            latest++;
        }

        return latest;
    }
}
