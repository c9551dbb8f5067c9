using System.Security.Cryptography;
using System.Text;
using Mustafar.Storage;

namespace Mustafar;

/// <summary>The SHA-256 of a safetensors file that holds it in its own metadata: of all bytes, with zeros in place of its digits.</summary>
internal static class FileChecksum
{
    /// <summary>The key under which it stands.</summary>
    internal const string Key = "mustafar.sha256";

    private const int ChunkBytes = 1 << 16;

    // Quotes inside of strings are escaped, so that these bytes stand where the key is and nowhere in a value before it.
    private static readonly byte[] s_mark = Encoding.ASCII.GetBytes($"\"{Key}\":\"");

    /// <summary>What stands in its place while it is computed.</summary>
    internal static string Blank { get; } = new('0', 2 * SHA256.HashSizeInBytes);

    /// <summary>Where its digits stand among the bytes in front of the data; negative if they don't.</summary>
    internal static int Find(ReadOnlySpan<byte> header)
    {
        int mark = header.IndexOf(s_mark);
        int digits = mark + s_mark.Length;
        return mark >= 0 && digits + Blank.Length <= header.Length ? digits : -1;
    }

    /// <summary>Computes the digits.</summary>
    /// <param name="header">The bytes in front of the data.</param>
    /// <param name="digits">Where the digits stand in them.</param>
    /// <param name="data">The rest of the file.</param>
    /// <param name="transfer">How far it has come.</param>
    internal static string Compute(ReadOnlySpan<byte> header, int digits, Stream data, FileTransfer transfer)
    {
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        hash.AppendData(header[..digits]);
        hash.AppendData(Encoding.ASCII.GetBytes(Blank));
        hash.AppendData(header[(digits + Blank.Length)..]);
        byte[] chunk = new byte[ChunkBytes];
        for (int count = data.Read(chunk); count > 0; count = data.Read(chunk))
        {
            transfer.Advance(count);
            hash.AppendData(chunk, 0, count);
        }

        return Convert.ToHexString(hash.GetHashAndReset());
    }
}
