using System.Buffers.Binary;
using System.Text;

namespace Mustafar.Tests.Bindings;

/// <summary>What a 64-bit little-endian ELF library defines for others.</summary>
internal static class ElfSymbols
{
    private const int DynamicSymbols = 11; // SHT_DYNSYM
    private const int SymbolBytes = 24;

    /// <summary>The names of the symbols that the library at <paramref name="path"/> exports.</summary>
    public static IEnumerable<string> Exported(string path)
    {
        byte[] file = File.ReadAllBytes(path);
        Assert.That(file[..6], Is.EqualTo(new byte[] { 0x7f, (byte)'E', (byte)'L', (byte)'F', 2, 1 }), $"{path} is a 64-bit little-endian ELF file");
        long sections = Int64(file, 0x28);
        int sectionBytes = Int16(file, 0x3a), count = Int16(file, 0x3c);
        long symbols = Enumerable.Range(0, count).Select(i => sections + (i * sectionBytes))
            .Single(section => Int32(file, section + 4) == DynamicSymbols);
        long names = Int64(file, sections + (Int32(file, symbols + 40) * sectionBytes) + 24);
        long first = Int64(file, symbols + 24), bytes = Int64(file, symbols + 32);
        for (long symbol = first; symbol < first + bytes; symbol += SymbolBytes)
        {
            bool isDefined = Int16(file, symbol + 6) != 0, isLocal = file[symbol + 4] >> 4 == 0;
            if (isDefined && !isLocal)
            {
                int name = (int)names + Int32(file, symbol);
                yield return Encoding.ASCII.GetString(file, name, Array.IndexOf(file, (byte)0, name) - name);
            }
        }
    }

    private static ushort Int16(byte[] file, long at) => BinaryPrimitives.ReadUInt16LittleEndian(file.AsSpan((int)at));

    private static int Int32(byte[] file, long at) => BinaryPrimitives.ReadInt32LittleEndian(file.AsSpan((int)at));

    private static long Int64(byte[] file, long at) => BinaryPrimitives.ReadInt64LittleEndian(file.AsSpan((int)at));
}
