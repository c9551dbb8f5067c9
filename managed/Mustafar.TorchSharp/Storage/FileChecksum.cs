using System.Security.Cryptography;
using System.Text;
using Mustafar.Storage;

namespace Mustafar;

/// <summary>The SHA-256 of a safetensors file that contains it in its own metadata: over all bytes, with zeros in place of its
/// digits.</summary>
internal static class FileChecksum
{
    /// <summary>Its key in the metadata.</summary>
    internal const string Key = "mustafar.sha256";

    private const int ChunkBytes = 1 << 16;

    // Quotes inside strings are escaped, so these bytes only occur at the key and in no value before it.
    private static readonly byte[] s_mark = Encoding.ASCII.GetBytes($"\"{Key}\":\"");

    /// <summary>The placeholder while it is computed.</summary>
    internal static string Blank { get; } = new('0', 2 * SHA256.HashSizeInBytes);

    /// <summary>Index of its digits in the bytes before the data; negative if they are missing.</summary>
    internal static int Find(ReadOnlySpan<byte> header)
    {
        int mark = header.IndexOf(s_mark);
        int digits = mark + s_mark.Length;
        return mark >= 0 && digits + Blank.Length <= header.Length ? digits : -1;
    }

    /// <summary>Computes the digits.</summary>
    /// <param name="header">The bytes before the data.</param>
    /// <param name="digits">Index of the digits in them.</param>
    /// <param name="data">The rest of the file.</param>
    /// <param name="transfer">Tracks the progress.</param>
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
