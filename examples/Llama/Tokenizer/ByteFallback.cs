using System.Globalization;
using System.Text;
using Mustafar.Examples.Llama.Checkpoint;

namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>The conventions of SentencePiece vocabularies with byte fallback: ▁ is a space, and &lt;0x41&gt; is a byte.</summary>
internal static class ByteFallback
{
    /// <summary>What stands for a space.</summary>
    public const char Space = '▁';

    /// <summary>The ids of all bytes, for characters that the vocabulary lacks.</summary>
    /// <exception cref="CheckpointException">One is not in the vocabulary.</exception>
    public static int[] Ids(IReadOnlyDictionary<string, int> vocabulary, string path)
    {
        int[] ids = new int[256];
        for (int value = 0; value < ids.Length; value++)
        {
            string token = string.Create(CultureInfo.InvariantCulture, $"<0x{value:X2}>");
            if (!vocabulary.TryGetValue(token, out ids[value]))
            {
                throw new CheckpointException($"expected a token for every byte, but '{token}' is not in the vocabulary.", path);
            }
        }

        return ids;
    }

    /// <summary>What each id stands for.</summary>
    /// <param name="vocabulary">All tokens.</param>
    /// <param name="byteIds">Of <see cref="Ids"/>.</param>
    public static Dictionary<int, byte[]> Bytes(IReadOnlyDictionary<string, int> vocabulary, ReadOnlySpan<int> byteIds)
    {
        Dictionary<int, byte[]> bytesOf = [];
        foreach ((string token, int id) in vocabulary)
        {
            bytesOf[id] = Encoding.UTF8.GetBytes(token.Replace(Space, ' '));
        }

        for (int value = 0; value < byteIds.Length; value++)
        {
            bytesOf[byteIds[value]] = [(byte)value];
        }

        return bytesOf;
    }
}
