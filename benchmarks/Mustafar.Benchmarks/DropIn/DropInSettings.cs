using Mustafar.Benchmarks.Decode;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.DropIn;

/// <summary>What of a model with replaced attention to measure.</summary>
/// <param name="Sizes">Sizes of the model.</param>
/// <param name="Batches">Numbers of sequences.</param>
/// <param name="Contexts">Tokens of each sequence with the last step.</param>
/// <param name="Prompt">Tokens of the prompt whose memory is measured; 0 for none.</param>
/// <param name="Keep">Channels kept of each key and value by the pruned form.</param>
/// <param name="DType">Type of weights and caches.</param>
/// <param name="Device">Where.</param>
/// <param name="Threads">CPU threads.</param>
/// <param name="Steps">Steps of each figure.</param>
/// <param name="Output">Folder for the results.</param>
internal sealed record DropInSettings(
    ModelSizes Sizes, IReadOnlyList<int> Batches, IReadOnlyList<int> Contexts, int Prompt, Kept Keep, ScalarType DType, Device Device, int Threads,
    int Steps, DirectoryInfo? Output);
