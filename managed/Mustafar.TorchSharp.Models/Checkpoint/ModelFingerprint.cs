using System.Security.Cryptography;
using System.Text;
using Mustafar.Storage;

namespace Mustafar.Models.Checkpoint;

/// <summary>Identifies checkpoints, so that one model's results are not used with another.</summary>
internal static class ModelFingerprint
{
    private const int WholeBytes = 4 << 20;
    private const int Samples = 256;
    private const int SampleBytes = 4096;

    /// <summary>
    /// The SHA-256, in hexadecimal, of config.json, of the names, types and shapes of all tensors, and of their bytes: all bytes of a
    /// tensor of up to 4 MiB, and 256 evenly spread samples of 4 KiB of a larger one. A change that misses all samples, such as one row
    /// of a large tensor edited by hand, is not detected. The distribution of tensors over files makes no difference.
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
            if (entry.ByteCount <= WholeBytes)
            {
                hash.AppendData(file.Read(entry, 0, (int)entry.ByteCount));
                continue;
            }

            for (int i = 0; i < Samples; i++)
            {
                hash.AppendData(file.Read(entry, i * (entry.ByteCount - SampleBytes) / (Samples - 1), SampleBytes));
            }
        }

        return Convert.ToHexString(hash.GetHashAndReset());
    }
}
