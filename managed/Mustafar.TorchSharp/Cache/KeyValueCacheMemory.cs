using System.Globalization;

namespace Mustafar;

/// <summary>What a <see cref="KeyValueCache"/> occupies, in bytes, and what the same tokens would occupy dense.</summary>
/// <param name="CompressedBytes">Pages of compressed tokens: bitmaps, packed values, scales, offsets, and pages that are free for tokens to come.</param>
/// <param name="WindowBytes">Storage of tokens that are held dense, with its reserve for tokens to come.</param>
/// <param name="UsedBytes">The part of both that the cached tokens take: their pages, dense tokens, sinks and channel scales, without what is
/// reserved for tokens to come.</param>
/// <param name="DenseBytes">Keys and values of the cached tokens in the cache's data type, with no reserve.</param>
/// <param name="Fp16Bytes">Keys and values of the cached tokens at two bytes per element, with no reserve.</param>
public readonly record struct KeyValueCacheMemory(long CompressedBytes, long WindowBytes, long UsedBytes, long DenseBytes, long Fp16Bytes)
{
    /// <summary>Everything that the cache has reserved: <see cref="CompressedBytes"/> + <see cref="WindowBytes"/>.</summary>
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

    /// <summary>The sum of caches, such as the layers of one model; nothing of none.</summary>
    /// <param name="parts">What each occupies.</param>
    /// <exception cref="ArgumentNullException"><paramref name="parts"/> is null.</exception>
    public static KeyValueCacheMemory Sum(IEnumerable<KeyValueCacheMemory> parts)
    {
        ArgumentNullException.ThrowIfNull(parts);
        return parts.Aggregate(default(KeyValueCacheMemory), (sum, part) => sum + part);
    }

    /// <summary>The numbers in words, in English whatever the culture: "10,027,488 bytes reserved (9,437,184 compressed, 590,304 dense),
    /// 9,240,000 in use; 40.5 % of 24,741,888 in dense fp16".</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{TotalBytes:N0} bytes reserved ({CompressedBytes:N0} compressed, {WindowBytes:N0} dense), {UsedBytes:N0} in use; {100 * RatioToFp16:F1} % of {Fp16Bytes:N0} in dense fp16");
}
