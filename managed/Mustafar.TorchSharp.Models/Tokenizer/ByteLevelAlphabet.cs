namespace Mustafar.Models.Tokenizer;

/// <summary>
/// The printable character that stands for each byte in the vocabulary of a byte-level tokenizer (GPT-2's table): printable Latin-1
/// characters stand for themselves, and the rest follow from U+0100 on.
/// </summary>
internal static class ByteLevelAlphabet
{
    private static readonly char[] s_charOf = MakeCharacters();
    private static readonly Dictionary<char, byte> s_byteOf = s_charOf.Select((c, i) => (c, (byte)i)).ToDictionary(p => p.c, p => p.Item2);

    /// <summary>The characters of bytes 0 to 255.</summary>
    public static ReadOnlySpan<char> Characters => s_charOf;

    /// <summary>The character of a byte.</summary>
    public static char CharacterOf(byte value) => s_charOf[value];

    /// <summary>The bytes that a token of the vocabulary stands for, or null if it has a character that is not in the table.</summary>
    public static byte[]? BytesOf(string token)
    {
        byte[] bytes = new byte[token.Length];
        for (int i = 0; i < bytes.Length; i++)
        {
            if (!s_byteOf.TryGetValue(token[i], out bytes[i]))
            {
                return null;
            }
        }

        return bytes;
    }

    private static char[] MakeCharacters()
    {
        char[] characters = new char[256];
        int next = 256;
        for (int i = 0; i < characters.Length; i++)
        {
            bool printable = i is (>= '!' and <= '~') or (>= 0xA1 and <= 0xAC) or (>= 0xAE and <= 0xFF);
            characters[i] = (char)(printable ? i : next++);
        }

        return characters;
    }
}
