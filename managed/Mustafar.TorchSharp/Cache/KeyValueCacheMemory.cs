using System.Globalization;

namespace Mustafar;

/// <summary>The memory of a <see cref="KeyValueCache"/> in bytes, and what the same tokens would take in a dense cache.</summary>
/// <param name="CompressedBytes">Pages of compressed tokens: bitmaps, packed values, scales, offsets, and free pages for later
/// tokens.</param>
/// <param name="WindowBytes">Storage of dense tokens, including the reserve for later tokens.</param>
/// <param name="UsedBytes">The part of both that the cached tokens take: their pages, dense tokens, sinks and channel scales, without the
/// reserve for later tokens.</param>
/// <param name="DenseBytes">Keys and values of the cached tokens in the cache's data type, with no reserve.</param>
/// <param name="Fp16Bytes">Keys and values of the cached tokens at two bytes per element, with no reserve.</param>
public readonly record struct KeyValueCacheMemory(long CompressedBytes, long WindowBytes, long UsedBytes, long DenseBytes, long Fp16Bytes)
{
    /// <summary>All memory that the cache has reserved: <see cref="CompressedBytes"/> + <see cref="WindowBytes"/>.</summary>
    public long TotalBytes => CompressedBytes + WindowBytes;

    /// <summary><see cref="TotalBytes"/> over <see cref="DenseBytes"/>; 0 for an empty cache.</summary>
    public double RatioToDense => DenseBytes == 0 ? 0 : (double)TotalBytes / DenseBytes;

    /// <summary><see cref="TotalBytes"/> over <see cref="Fp16Bytes"/>; 0 for an empty cache.</summary>
    public double RatioToFp16 => Fp16Bytes == 0 ? 0 : (double)TotalBytes / Fp16Bytes;

    /// <summary>The sum of two caches, such as two layers of one model.</summary>
    public static KeyValueCacheMemory operator +(KeyValueCacheMemory left, KeyValueCacheMemory right) => new(
        left.CompressedBytes + right.CompressedBytes,
        left.WindowBytes + right.WindowBytes,
        left.UsedBytes + right.UsedBytes,
        left.DenseBytes + right.DenseBytes,
        left.Fp16Bytes + right.Fp16Bytes);

    /// <summary>The sum of caches, such as the layers of one model; zero for none.</summary>
    /// <param name="parts">The memory of each.</param>
    /// <exception cref="ArgumentNullException"><paramref name="parts"/> is null.</exception>
    public static KeyValueCacheMemory Sum(IEnumerable<KeyValueCacheMemory> parts)
    {
        ArgumentNullException.ThrowIfNull(parts);
        return parts.Aggregate(default(KeyValueCacheMemory), (sum, part) => sum + part);
    }

    /// <summary>The numbers as English text, whatever the culture: "10,027,488 bytes reserved (9,437,184 compressed, 590,304 dense),
    /// 9,240,000 in use; 40.5 % of 24,741,888 in dense fp16".</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{TotalBytes:N0} bytes reserved ({CompressedBytes:N0} compressed, {WindowBytes:N0} dense), {UsedBytes:N0} in use; {100 * RatioToFp16:F1} % of {Fp16Bytes:N0} in dense fp16");
}
