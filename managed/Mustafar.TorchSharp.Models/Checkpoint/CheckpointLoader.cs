using Mustafar.Storage;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Models.Checkpoint;

/// <summary>Fills a module's parameters from a checkpoint.</summary>
public static class CheckpointLoader
{
    // Limits the staging buffer of conversions, and keeps a span's length within an int.
    private const long ChunkBytes = 64L << 20;

    private const int NamesInMessage = 5;

    /// <summary>Copies every parameter of a module from the tensor of the same name, converting type and device.</summary>
    /// <param name="module">The module; its parameters are overwritten.</param>
    /// <param name="checkpoint">The weights.</param>
    /// <param name="progress">Receives the share of bytes loaded, 0 to 1.</param>
    /// <param name="cancellationToken">Cancels between tensors.</param>
    /// <returns>Names of the checkpoint's tensors that the module doesn't use.</returns>
    /// <exception cref="CheckpointException">A tensor is missing, or its shape or type is not the parameter's.</exception>
    public static IReadOnlyList<string> Load(
        nn.Module module, SafetensorsCheckpoint checkpoint, IProgress<double>? progress = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(module);
        ArgumentNullException.ThrowIfNull(checkpoint);
        List<(Parameter Parameter, SafetensorsFile File, SafetensorsEntry Entry)> work = Match(module, checkpoint);
        double total = Math.Max(1, work.Sum(item => item.Entry.ByteCount));
        long done = 0;
        foreach ((Parameter parameter, SafetensorsFile file, SafetensorsEntry entry) in work)
        {
            cancellationToken.ThrowIfCancellationRequested();
            Copy(parameter, file, entry, bytes => progress?.Report((done += bytes) / total));
        }

        HashSet<string> used = work.Select(item => item.Entry.Name).ToHashSet();
        return checkpoint.Names.Where(name => !used.Contains(name)).Order(StringComparer.Ordinal).ToList();
    }

    // Everything is checked before anything is written, so that a wrong checkpoint leaves the module unchanged.
    private static List<(Parameter Parameter, SafetensorsFile File, SafetensorsEntry Entry)> Match(
        nn.Module module, SafetensorsCheckpoint checkpoint)
    {
        List<(Parameter, SafetensorsFile, SafetensorsEntry)> work = [];
        List<string> missing = [];
        foreach ((string name, Parameter parameter) in module.named_parameters())
        {
            if (checkpoint.Find(name) is not (SafetensorsFile file, SafetensorsEntry entry))
            {
                missing.Add(name);
                continue;
            }

            if (!parameter.shape.SequenceEqual(entry.Shape))
            {
                throw new CheckpointException(
                    $"expected shape [{string.Join(", ", parameter.shape)}], but got [{string.Join(", ", entry.Shape)}].", file.Path, name);
            }

            if (entry.DType is not (ScalarType.Float64 or ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
            {
                throw new CheckpointException($"expected a floating-point type, but got {entry.DType}.", file.Path, name);
            }

            work.Add((parameter, file, entry));
        }

        if (missing.Count > 0)
        {
            string names = string.Join(", ", missing.Take(NamesInMessage)) + (missing.Count > NamesInMessage ? ", …" : "");
            throw new CheckpointException(
                $"expected all parameters of the model, but {missing.Count} are missing: {names}.", checkpoint.Directory);
        }

        return work;
    }

    private static void Copy(Parameter parameter, SafetensorsFile file, SafetensorsEntry entry, Action<long> report)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        if (entry.ByteCount == 0)
        {
            return;
        }

        bool inPlace = parameter.dtype == entry.DType && parameter.device_type == DeviceType.CPU && parameter.is_contiguous();
        Tensor target = parameter.dim() == 0 ? parameter.reshape(1) : parameter;
        long rows = target.shape[0];
        long rowBytes = entry.ByteCount / rows;
        long rowsPerChunk = Math.Clamp(ChunkBytes / rowBytes, 1, rows);
        for (long row = 0; row < rows; row += rowsPerChunk)
        {
            using DisposeScope chunkScope = NewDisposeScope();
            long count = Math.Min(rowsPerChunk, rows - row);
            int bytes = checked((int)(count * rowBytes));
            Tensor part = target.narrow(0, row, count);
            Tensor staging = inPlace ? part : empty(part.shape, dtype: entry.DType, device: CPU);
            file.Read(entry, row * rowBytes, bytes).CopyTo(staging.bytes);
            if (!inPlace)
            {
                part.copy_(staging);
            }

            report(bytes);
        }
    }
}
