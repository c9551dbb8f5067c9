using Mustafar.Benchmarks.Decode;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.DropIn;

/// <summary>What to measure of a model with replaced attention.</summary>
/// <param name="Sizes">Sizes of the model.</param>
/// <param name="Batches">Numbers of sequences.</param>
/// <param name="Contexts">Tokens of each sequence, including the last step's.</param>
/// <param name="Prompt">Tokens of the prompt whose memory is measured; 0 for none.</param>
/// <param name="Keep">Channels of each key and value that the pruned form keeps.</param>
/// <param name="DType">Type of weights and caches.</param>
/// <param name="Device">The device to measure on.</param>
/// <param name="Threads">CPU threads.</param>
/// <param name="Steps">Steps per measurement.</param>
/// <param name="Output">Folder for the results.</param>
internal sealed record DropInSettings(
    ModelSizes Sizes, IReadOnlyList<int> Batches, IReadOnlyList<int> Contexts, int Prompt, Kept Keep, ScalarType DType, Device Device, int Threads,
    int Steps, DirectoryInfo? Output);
