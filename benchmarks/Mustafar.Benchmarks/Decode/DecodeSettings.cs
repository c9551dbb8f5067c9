using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Decode;

/// <summary>Which whole decode steps to measure.</summary>
/// <param name="Model">Folder of a checkpoint; null for a model of random weights.</param>
/// <param name="Sizes">Sizes of the model of random weights.</param>
/// <param name="Batches">Numbers of sequences.</param>
/// <param name="Contexts">Tokens that each sequence has before the first step.</param>
/// <param name="Largest">Whether to also measure the largest number of sequences that fits.</param>
/// <param name="Keeps">Compressed caches to measure beside the dense one.</param>
/// <param name="DType">Type of weights and caches.</param>
/// <param name="Device">The device to measure on.</param>
/// <param name="Threads">CPU threads.</param>
/// <param name="Steps">Steps per measurement.</param>
/// <param name="Eager">Whether steps run without graphs.</param>
/// <param name="Output">Folder for the results.</param>
internal sealed record DecodeSettings(
    DirectoryInfo? Model, ModelSizes Sizes, IReadOnlyList<int> Batches, IReadOnlyList<int> Contexts, bool Largest, IReadOnlyList<Kept> Keeps,
    ScalarType DType, Device Device, int Threads, int Steps, bool Eager, DirectoryInfo? Output);

/// <summary>Sizes of a Llama model; those of Llama-3-8B by default.</summary>
internal sealed record ModelSizes(int Layers, int Hidden, int Intermediate, int Heads, int KvHeads, int Vocab);
