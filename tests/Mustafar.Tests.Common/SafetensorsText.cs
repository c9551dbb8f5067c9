using System.Security.Cryptography;
using System.Text;

namespace Mustafar.Tests;

/// <summary>Safetensors files taken apart by hand, with a checksum that is right again.</summary>
internal static class SafetensorsText
{
    private const string Mark = "\"mustafar.sha256\":\"";

    /// <summary>A file of a header and data.</summary>
    internal static byte[] File(string header, byte[] data)
    {
        byte[] text = Encoding.UTF8.GetBytes(header);
        return [.. BitConverter.GetBytes((long)text.Length), .. text, .. data];
    }

    /// <summary>A file of a header and data, with the checksum of what it is if its header has one.</summary>
    internal static byte[] Sealed(string header, byte[] data)
    {
        byte[] file = File(header, data);
        int mark = header.IndexOf(Mark, StringComparison.Ordinal);
        int digits = mark < 0 ? 0 : 8 + Encoding.UTF8.GetByteCount(header.AsSpan(0, mark)) + Mark.Length;
        if (mark >= 0 && digits + 64 <= file.Length)
        {
            file.AsSpan(digits, 64).Fill((byte)'0');
            Encoding.ASCII.GetBytes(Convert.ToHexString(SHA256.HashData(file))).CopyTo(file, digits);
        }

        return file;
    }

    /// <summary>The header and the data of a file.</summary>
    internal static (string Header, byte[] Data) Parts(byte[] file)
    {
        int length = (int)BitConverter.ToInt64(file);
        return (Encoding.UTF8.GetString(file, 8, length), file[(8 + length)..]);
    }

    /// <summary>Changes the header of a file.</summary>
    internal static void Rewrite(string path, Func<string, string> change) => Rewrite(path, change, data => data);

    /// <summary>Changes header and data of a file, and gives it the checksum of what it is then.</summary>
    internal static void Rewrite(string path, Func<string, string> change, Func<byte[], byte[]> changeData)
    {
        (string header, byte[] data) = Parts(System.IO.File.ReadAllBytes(path));
        System.IO.File.WriteAllBytes(path, Sealed(change(header), changeData(data)));
    }
}
