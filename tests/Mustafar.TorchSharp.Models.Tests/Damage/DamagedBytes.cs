using System.Text;

namespace Mustafar.Tests.Damage;

/// <summary>Bytes that were changed at random, as a transfer, an editor or a program in error changes them.</summary>
internal static class DamagedBytes
{
    private const int LargestInsertion = 20;

    /// <summary>What JSON can hold, and what tends to be mistaken.</summary>
    internal static readonly string[] Pieces =
    [
        "null", "true", "-1", "0", "1e999", "-0.5", "2147483648", "99999999999999999999", "\"\"", "\"\\ud800\"", "[]", "{}", "[[1]]", "{", "}",
        "\"", ",", ":", "\\", "\u0000", "\uFEFF", "1.5", "\"64\"", "[0, 4]", "NaN", "1e-400", "-9223372036854775808", "\"\\u0000\"", "\r\n",
    ];

    /// <summary>A copy with one to three changes.</summary>
    /// <param name="original">The bytes.</param>
    /// <param name="random">What decides.</param>
    internal static byte[] Change(byte[] original, Random random)
    {
        List<byte> bytes = [.. original];
        for (int changes = random.Next(1, 4); changes > 0 && bytes.Count > 0; changes--)
        {
            ChangeOnce(bytes, random);
        }

        return [.. bytes];
    }

    private static void ChangeOnce(List<byte> bytes, Random random)
    {
        int at = random.Next(bytes.Count);
        int count = Math.Min(random.Next(1, LargestInsertion), bytes.Count - at);
        switch (random.Next(7))
        {
            case 0:
                bytes[at] = (byte)random.Next(256);
                break;
            case 1:
                bytes[at] ^= (byte)(1 << random.Next(8));
                break;
            case 2:
                bytes.RemoveRange(at, count);
                break;
            case 3:
                bytes.InsertRange(at, Piece(random));
                break;
            case 4:
                bytes.InsertRange(random.Next(bytes.Count), bytes.GetRange(at, count));
                break;
            case 5 when random.Next(10) == 0:
                bytes.RemoveRange(at, bytes.Count - at);
                break;
            default:
                // A value in place of a number or a text: what stands behind the next colon.
                int colon = bytes.IndexOf((byte)':', at);
                int end = colon < 0 ? -1 : bytes.FindIndex(colon, item => item is (byte)',' or (byte)'}' or (byte)'\n');
                if (end > 0)
                {
                    bytes.RemoveRange(colon + 1, end - colon - 1);
                    bytes.InsertRange(colon + 1, Piece(random));
                }

                break;
        }
    }

    private static byte[] Piece(Random random) => Encoding.UTF8.GetBytes(Pieces[random.Next(Pieces.Length)]);
}
