using static TorchSharp.torch;

namespace Mustafar.Storage;

/// <summary>Tensor types with their names in safetensors files.</summary>
internal static class SafetensorsTypes
{
    private static readonly (string Name, ScalarType Type, int Size)[] s_all =
    [
        ("F64", ScalarType.Float64, 8),
        ("F32", ScalarType.Float32, 4),
        ("F16", ScalarType.Float16, 2),
        ("BF16", ScalarType.BFloat16, 2),
        ("I64", ScalarType.Int64, 8),
        ("I32", ScalarType.Int32, 4),
        ("I16", ScalarType.Int16, 2),
        ("I8", ScalarType.Int8, 1),
        ("U8", ScalarType.Byte, 1),
        ("BOOL", ScalarType.Bool, 1),
    ];

    /// <summary>All names, for messages.</summary>
    internal static string Names => string.Join(", ", s_all.Select(item => item.Name));

    /// <summary>The type with a name, and the bytes of an element; null if there is none.</summary>
    internal static (ScalarType Type, int Size)? Find(string name) =>
        Array.FindIndex(s_all, item => item.Name == name) is int index and >= 0 ? (s_all[index].Type, s_all[index].Size) : null;

    /// <summary>The name of a type and the bytes of an element.</summary>
    internal static (string Name, int Size) Of(ScalarType type)
    {
        (string name, _, int size) = Array.Find(s_all, item => item.Type == type);
        return (name, size);
    }
}
