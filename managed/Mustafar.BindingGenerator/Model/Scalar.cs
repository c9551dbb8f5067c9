using System.Collections.Frozen;

namespace Mustafar.BindingGenerator.Model;

/// <summary>
/// A scalar type with the same size wherever the library runs, and its C# counterpart. <c>long</c>, <c>bool</c> and
/// the like are excluded on purpose: their size or their values depend on the compiler.
/// </summary>
public sealed record Scalar
{
    private static readonly FrozenDictionary<string, Scalar> Known = new Scalar[]
    {
        new("void", "void", 0),
        new("char", "byte", 1),
        new("int", "int", 4),
        new("unsigned int", "uint", 4),
        new("float", "float", 4),
        new("double", "double", 8),
        new("int8_t", "sbyte", 1),
        new("int16_t", "short", 2),
        new("int32_t", "int", 4),
        new("int64_t", "long", 8),
        new("uint8_t", "byte", 1),
        new("uint16_t", "ushort", 2),
        new("uint32_t", "uint", 4),
        new("uint64_t", "ulong", 8),
        new("size_t", "nuint", 8),
        new("uintptr_t", "nuint", 8),
        new("intptr_t", "nint", 8),
        new("ptrdiff_t", "nint", 8),
    }.ToFrozenDictionary(scalar => scalar.Spelling);

    private Scalar(string spelling, string managedName, int bytes) => (Spelling, ManagedName, Bytes) = (spelling, managedName, bytes);

    /// <summary>The name in C.</summary>
    public string Spelling { get; }

    /// <summary>The C# keyword of the type with the same size and values.</summary>
    public string ManagedName { get; }

    /// <summary>Size in bytes, and alignment, in a 64-bit process; 0 of void.</summary>
    public int Bytes { get; }

    /// <summary>The scalar with this C name, or null if there is none.</summary>
    public static Scalar? Find(string spelling) => Known.GetValueOrDefault(spelling);
}
