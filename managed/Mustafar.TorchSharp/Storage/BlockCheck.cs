using System.Numerics;
using System.Runtime.InteropServices;
using Mustafar.Native;

namespace Mustafar;

/// <summary>Whether the bitmap of a block in plain order is one that its format can have: what decoding it relies on.</summary>
internal static class BlockCheck
{
    private const int PieceBits = sizeof(ushort) * 8; // channels of a unit's piece of a row
    private const ulong KeyUnit = 0x1111_1111_1111_1111; // of four pieces, one for each element of a group
    private const ulong ValueUnit = 0x000F_000F_000F_000F;

    /// <summary>Whether each row, or each unit of a balanced pattern, has as many channels as it keeps.</summary>
    internal static bool IsValid(ReadOnlySpan<byte> block, in NativeFormat format)
    {
        int rowBytes = (format.HeadDim + 31) / 32 * sizeof(uint);
        ReadOnlySpan<byte> bitmap = block[..(NativeConstants.BlockTokens * rowBytes)];
        return (Pattern)format.Pattern switch
        {
            Pattern.BalancedKeys => HasBalancedKeys(bitmap, rowBytes, format),
            Pattern.BalancedValues => HasBalancedValues(bitmap, rowBytes, format),
            _ => HasRowsOf(format.Keep, bitmap, rowBytes, format.HeadDim),
        };
    }

    private static bool HasRowsOf(int keep, ReadOnlySpan<byte> bitmap, int rowBytes, int headDim)
    {
        for (; bitmap.Length > 0; bitmap = bitmap[rowBytes..])
        {
            ReadOnlySpan<uint> row = MemoryMarshal.Cast<byte, uint>(bitmap[..rowBytes]);
            int count = 0;
            foreach (uint word in row)
            {
                count += BitOperations.PopCount(word);
            }

            if (count != keep || (headDim % 32 != 0 && row[^1] >> (headDim % 32) != 0))
            {
                return false;
            }
        }

        return true;
    }

    // Element m of a group is m quarters of the row further on.
    private static bool HasBalancedKeys(ReadOnlySpan<byte> bitmap, int rowBytes, in NativeFormat format)
    {
        int quarter = format.HeadDim / PieceBits / 4;
        for (; bitmap.Length > 0; bitmap = bitmap[rowBytes..])
        {
            ReadOnlySpan<ushort> row = MemoryMarshal.Cast<byte, ushort>(bitmap[..rowBytes]);
            for (int p = 0; p < quarter; p++)
            {
                if (!HasUnits(row[p], row[p + quarter], row[p + (2 * quarter)], row[p + (3 * quarter)], KeyUnit, step: 1, format))
                {
                    return false;
                }
            }
        }

        return true;
    }

    // Element m of a group is in the m-th of four rows.
    private static bool HasBalancedValues(ReadOnlySpan<byte> bitmap, int rowBytes, in NativeFormat format)
    {
        int width = rowBytes / sizeof(ushort);
        for (; bitmap.Length > 0; bitmap = bitmap[(4 * rowBytes)..])
        {
            ReadOnlySpan<ushort> rows = MemoryMarshal.Cast<byte, ushort>(bitmap[..(4 * rowBytes)]);
            for (int p = 0; p < width; p++)
            {
                if (!HasUnits(rows[p], rows[p + width], rows[p + (2 * width)], rows[p + (3 * width)], ValueUnit, step: 4, format))
                {
                    return false;
                }
            }
        }

        return true;
    }

    // Four units of 16: bit i of the pieces are the elements of a group.
    private static bool HasUnits(ushort a, ushort b, ushort c, ushort d, ulong unit, int step, in NativeFormat format)
    {
        if (((a & b & (c | d)) | (c & d & (a | b))) != 0)
        {
            return false; // more than two of a group
        }

        ulong pieces = a | ((ulong)b << 16) | ((ulong)c << 32) | ((ulong)d << 48);
        for (int i = 0; i < 4; i++)
        {
            if (BitOperations.PopCount(pieces & (unit << (i * step))) != format.Keep * 16 / format.HeadDim)
            {
                return false;
            }
        }

        return true;
    }
}
