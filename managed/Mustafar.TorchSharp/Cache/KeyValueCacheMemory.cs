namespace Mustafar;

/// <summary>What a <see cref="KeyValueCache"/> occupies, in bytes, and what the same tokens would occupy dense.</summary>
/// <param name="CompressedBytes">Pages of compressed tokens: bitmaps, packed values, scales, offsets, and the unused rest of the last page.</param>
/// <param name="WindowBytes">Storage of tokens that are held dense, with its reserve for tokens to come.</param>
/// <param name="DenseBytes">Keys and values of the cached tokens in the cache's data type, with no reserve.</param>
/// <param name="Fp16Bytes">Keys and values of the cached tokens at two bytes per element, with no reserve.</param>
public readonly record struct KeyValueCacheMemory(long CompressedBytes, long WindowBytes, long DenseBytes, long Fp16Bytes)
{
    /// <summary>Everything that the cache holds: <see cref="CompressedBytes"/> + <see cref="WindowBytes"/>.</summary>
    public long TotalBytes => CompressedBytes + WindowBytes;

    /// <summary><see cref="TotalBytes"/> over <see cref="DenseBytes"/>; 0 for an empty cache.</summary>
    public double RatioToDense => DenseBytes == 0 ? 0 : (double)TotalBytes / DenseBytes;

    /// <summary><see cref="TotalBytes"/> over <see cref="Fp16Bytes"/>; 0 for an empty cache.</summary>
    public double RatioToFp16 => Fp16Bytes == 0 ? 0 : (double)TotalBytes / Fp16Bytes;

    /// <summary>The sum of two caches, such as two layers of one model.</summary>
    public static KeyValueCacheMemory operator +(KeyValueCacheMemory left, KeyValueCacheMemory right) => new(
        left.CompressedBytes + right.CompressedBytes,
        left.WindowBytes + right.WindowBytes,
        left.DenseBytes + right.DenseBytes,
        left.Fp16Bytes + right.Fp16Bytes);
}
