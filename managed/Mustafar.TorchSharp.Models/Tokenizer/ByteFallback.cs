using System.Globalization;
using System.Text;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>The conventions of SentencePiece vocabularies with byte fallback: ▁ is a space, and &lt;0x41&gt; is a byte.</summary>
internal static class ByteFallback
{
    /// <summary>The character that stands for a space.</summary>
    public const char Space = '▁';

    /// <summary>The ids of all bytes, for characters that the vocabulary lacks; -1 for bytes that it lacks too.</summary>
    public static int[] Ids(IReadOnlyDictionary<string, int> vocabulary)
    {
        int[] ids = new int[256];
        for (int value = 0; value < ids.Length; value++)
        {
            ids[value] = vocabulary.TryGetValue(Token(value), out int id) ? id : -1;
        }

        return ids;
    }

    /// <summary>The ids of all bytes.</summary>
    /// <exception cref="CheckpointException">One is not in the vocabulary.</exception>
    public static int[] RequireIds(IReadOnlyDictionary<string, int> vocabulary, string path)
    {
        int[] ids = Ids(vocabulary);
        int missing = Array.IndexOf(ids, -1);
        return missing < 0
            ? ids
            : throw new CheckpointException($"expected a token for every byte, but '{Token(missing)}' is not in the vocabulary.", path);
    }

    /// <summary>The bytes that each id stands for.</summary>
    /// <param name="vocabulary">All tokens.</param>
    /// <param name="byteIds">The result of <see cref="Ids"/>.</param>
    public static Dictionary<int, byte[]> Bytes(IReadOnlyDictionary<string, int> vocabulary, ReadOnlySpan<int> byteIds)
    {
        Dictionary<int, byte[]> bytesOf = [];
        foreach ((string token, int id) in vocabulary)
        {
            bytesOf[id] = Encoding.UTF8.GetBytes(token.Replace(Space, ' '));
        }

        for (int value = 0; value < byteIds.Length; value++)
        {
            if (byteIds[value] >= 0)
            {
                bytesOf[byteIds[value]] = [(byte)value];
            }
        }

        return bytesOf;
    }

    private static string Token(int value) => string.Create(CultureInfo.InvariantCulture, $"<0x{value:X2}>");
}
