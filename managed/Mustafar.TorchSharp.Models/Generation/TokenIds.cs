using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Models.Generation;

/// <summary>Token ids as input of a model.</summary>
public static class TokenIds
{
    /// <summary>Checks that a model can take ids.</summary>
    /// <param name="ids">The ids, at least one.</param>
    /// <param name="config">The model.</param>
    /// <param name="alreadyCached">Number of tokens that the model has read before.</param>
    /// <exception cref="ArgumentException">There are none or too many of them, or one is not in the vocabulary.</exception>
    public static void Check(IReadOnlyList<int> ids, LlamaConfig config, int alreadyCached = 0)
    {
        ArgumentNullException.ThrowIfNull(ids);
        ArgumentNullException.ThrowIfNull(config);
        if (ids.Count == 0)
        {
            throw new ArgumentException("Expected at least one token, but the text is empty.", nameof(ids));
        }

        if (ids.Count > config.MaxPositions - alreadyCached)
        {
            string cached = alreadyCached > 0 ? $" after the {alreadyCached} cached ones" : "";
            throw new ArgumentException(
                $"Expected at most {config.MaxPositions - alreadyCached} tokens{cached}, since the model's context is {config.MaxPositions} "
                + $"(max_position_embeddings), but got {ids.Count}.",
                nameof(ids));
        }

        for (int i = 0; i < ids.Count; i++)
        {
            if (ids[i] < 0 || ids[i] >= config.VocabSize)
            {
                throw new ArgumentException($"Expected ids from 0 to {config.VocabSize - 1}, but token {i} is {ids[i]}.", nameof(ids));
            }
        }
    }

    /// <summary>Sets the scores of ids without a token to −∞, so that they are never chosen.</summary>
    /// <param name="logits">[.., vocab_size]; overwritten.</param>
    /// <param name="config">The model.</param>
    /// <returns>The scores.</returns>
    public static Tensor ExcludeUnused(Tensor logits, LlamaConfig config)
    {
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(config);
        if (config.UnusedTokenIds.Count == 0)
        {
            return logits;
        }

        using Tensor unused = tensor([.. config.UnusedTokenIds.Select(id => (long)id)], device: logits.device);
        return logits.index_fill_(-1, unused, double.NegativeInfinity);
    }

    /// <summary>Sequences of any lengths as a tensor, with zeros after the shorter ones.</summary>
    /// <returns>Int64 [batch, n], where n is the greatest length.</returns>
    public static Tensor ToPaddedTensor(IReadOnlyList<IReadOnlyList<int>> sequences, Device device)
    {
        ArgumentNullException.ThrowIfNull(sequences);
        int longest = sequences.Max(sequence => sequence.Count);
        return ToTensor([.. sequences.Select(sequence => sequence.Concat(new int[longest - sequence.Count]).ToArray())], device);
    }

    /// <summary>One sequence as a tensor.</summary>
    /// <returns>Int64 [1, n].</returns>
    public static Tensor ToTensor(IReadOnlyList<int> ids, Device device) => ToTensor([ids], device);

    /// <summary>Sequences of one length as a tensor.</summary>
    /// <returns>Int64 [batch, n].</returns>
    /// <exception cref="ArgumentException">The lengths differ.</exception>
    public static Tensor ToTensor(IReadOnlyList<IReadOnlyList<int>> sequences, Device device)
    {
        ArgumentNullException.ThrowIfNull(sequences);
        int length = sequences.Count == 0 ? 0 : sequences[0].Count;
        long[] ids = new long[sequences.Count * length];
        for (int i = 0; i < sequences.Count; i++)
        {
            if (sequences[i].Count != length)
            {
                throw new ArgumentException($"Expected sequences of {length} tokens, but one has {sequences[i].Count}.", nameof(sequences));
            }

            for (int j = 0; j < length; j++)
            {
                ids[(i * length) + j] = sequences[i][j];
            }
        }

        return tensor(ids, device: device).reshape(sequences.Count, length);
    }
}
