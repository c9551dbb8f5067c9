using static TorchSharp.torch;

namespace Mustafar.Storage;

/// <summary>The location of a tensor in a safetensors file.</summary>
/// <param name="Name">Its name.</param>
/// <param name="DType">Its type.</param>
/// <param name="Shape">Its shape.</param>
/// <param name="Offset">Its first byte, relative to the file's first.</param>
/// <param name="ByteCount">Its size in bytes.</param>
public sealed record SafetensorsEntry(string Name, ScalarType DType, IReadOnlyList<long> Shape, long Offset, long ByteCount);
