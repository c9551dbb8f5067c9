using System.Security.Cryptography;
using System.Text;
using Mustafar.Storage;

namespace Mustafar.Models.Checkpoint;

/// <summary>Tells the checkpoints of models apart, so that what one model computed is not taken for another's.</summary>
internal static class ModelFingerprint
{
    private const int SampleBytes = 4096;

    /// <summary>
    /// The SHA-256, in hexadecimal, of config.json, of the names, types and shapes of all tensors, and of three samples of 4 KiB of each
    /// tensor's bytes: its first, its middle and its last. That is a few megabytes of a checkpoint of any size, so it costs
    /// milliseconds; a change that misses all samples, such as one weight edited by hand, is not seen. How the tensors are spread over
    /// files makes no difference.
    /// </summary>
    /// <param name="config">Path of config.json.</param>
    /// <param name="checkpoint">The weights.</param>
    public static string Of(string config, SafetensorsCheckpoint checkpoint)
    {
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        hash.AppendData(File.ReadAllBytes(config));
        foreach (string name in checkpoint.Names.Order(StringComparer.Ordinal))
        {
            (SafetensorsFile file, SafetensorsEntry entry) = checkpoint.Find(name)!.Value;
            hash.AppendData(Encoding.UTF8.GetBytes($"\n{name} {entry.DType} [{string.Join(", ", entry.Shape)}]\n"));
            int count = (int)Math.Min(SampleBytes, entry.ByteCount);
            long last = entry.ByteCount - count;
            foreach (long start in (long[])[0, last / 2, last])
            {
                hash.AppendData(file.Read(entry, start, count));
            }
        }

        return Convert.ToHexString(hash.GetHashAndReset());
    }
}
