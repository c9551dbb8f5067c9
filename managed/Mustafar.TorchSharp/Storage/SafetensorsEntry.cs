using static TorchSharp.torch;

namespace Mustafar.Storage;

/// <summary>Where a tensor lies in a safetensors file.</summary>
/// <param name="Name">Its name.</param>
/// <param name="DType">Its type.</param>
/// <param name="Shape">Its shape.</param>
/// <param name="Offset">Its first byte, counted from the file's first.</param>
/// <param name="ByteCount">Its size in bytes.</param>
public sealed record SafetensorsEntry(string Name, ScalarType DType, IReadOnlyList<long> Shape, long Offset, long ByteCount);
