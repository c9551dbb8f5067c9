using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Mustafar.Native;

namespace Mustafar;

/// <summary>Whether a block in plain order is valid for its format: what decoding relies on.</summary>
internal static class BlockCheck
{
    private const int PieceBits = sizeof(ushort) * 8; // channels of a unit's piece of a row
    private const ulong KeyUnit = 0x1111_1111_1111_1111; // of four pieces, one for each element of a group
    private const ulong ValueUnit = 0x000F_000F_000F_000F;
    private const byte LeastInt8 = 0x80; // -128, which no number becomes
    private const int NegativeZero = 8; // of 4 bits, likewise

    /// <summary>Whether each row, or each unit of a balanced pattern, has as many channels as it keeps, and integers and scales are ones
    /// that quantisation can produce.</summary>
    internal static bool IsValid(ReadOnlySpan<byte> block, in NativeFormat format)
    {
        bool keepsAll = LayerFormat.KeepsAll(format);
        int bitmapBytes = keepsAll ? 0 : NativeConstants.BlockTokens * ((format.HeadDim + 31) / 32) * sizeof(uint);
        return (keepsAll || HasBitmap(block[..bitmapBytes], format)) && HasNumbers(block[bitmapBytes..], (ValueFormat)format.ValueFormat);
    }

    /// <summary>Whether numbers can be channel scales of keys.</summary>
    internal static bool AreChannelScales(ReadOnlySpan<float> scales)
    {
        foreach (float scale in scales)
        {
            if (!(scale is >= 1 / 1024f and <= 1024f && (float)(Half)scale == scale))
            {
                return false;
            }
        }

        return true;
    }

    // Values and scales.
    private static bool HasNumbers(ReadOnlySpan<byte> numbers, ValueFormat format)
    {
        if (format == ValueFormat.Native)
        {
            return true;
        }

        int scaleBytes = NativeConstants.BlockTokens * Unsafe.SizeOf<Half>();
        foreach (Half scale in MemoryMarshal.Cast<byte, Half>(numbers[^scaleBytes..]))
        {
            if (Half.IsNegative(scale) || Half.IsInfinity(scale))
            {
                return false;
            }
        }

        ReadOnlySpan<byte> values = numbers[..^scaleBytes];
        return format == ValueFormat.Int8 ? !values.Contains(LeastInt8) : !HasNegativeZero(values);
    }

    private static bool HasNegativeZero(ReadOnlySpan<byte> nibbles)
    {
        foreach (byte pair in nibbles)
        {
            if ((pair & 0xF) == NegativeZero || pair >> 4 == NegativeZero)
            {
                return true;
            }
        }

        return false;
    }

    private static bool HasBitmap(ReadOnlySpan<byte> bitmap, in NativeFormat format)
    {
        int rowBytes = (format.HeadDim + 31) / 32 * sizeof(uint);
        return (Pattern)format.Pattern switch
        {
            Pattern.BalancedKeys => HasBalancedKeys(bitmap, rowBytes, format),
            Pattern.BalancedValues => HasBalancedValues(bitmap, rowBytes, format),
            Pattern.Mask => HasAtMost(format.Keep * NativeConstants.BlockTokens, bitmap, rowBytes, format.HeadDim),
            _ => HasRowsOf(format.Keep, bitmap, rowBytes, format.HeadDim),
        };
    }

    private static bool HasAtMost(int most, ReadOnlySpan<byte> bitmap, int rowBytes, int headDim)
    {
        int count = 0;
        for (; bitmap.Length > 0; bitmap = bitmap[rowBytes..])
        {
            ReadOnlySpan<uint> row = MemoryMarshal.Cast<byte, uint>(bitmap[..rowBytes]);
            if (HasExcess(row, headDim))
            {
                return false;
            }

            count += Count(row);
        }

        return count <= most;
    }

    private static int Count(ReadOnlySpan<uint> row)
    {
        int count = 0;
        foreach (uint word in row)
        {
            count += BitOperations.PopCount(word);
        }

        return count;
    }

    private static bool HasExcess(ReadOnlySpan<uint> row, int headDim) => headDim % 32 != 0 && row[^1] >> (headDim % 32) != 0;

    private static bool HasRowsOf(int keep, ReadOnlySpan<byte> bitmap, int rowBytes, int headDim)
    {
        for (; bitmap.Length > 0; bitmap = bitmap[rowBytes..])
        {
            ReadOnlySpan<uint> row = MemoryMarshal.Cast<byte, uint>(bitmap[..rowBytes]);
            if (Count(row) != keep || HasExcess(row, headDim))
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
