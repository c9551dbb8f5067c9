using System.Collections.Frozen;

namespace Mustafar.BindingGenerator.Model;

/// <summary>
/// A scalar type with the same size wherever the library runs, and its C# counterpart. <c>long</c>, <c>bool</c> and
/// the like are left out on purpose: their size or their values depend on the compiler.
/// </summary>
public sealed record Scalar
{
    private static readonly FrozenDictionary<string, Scalar> Known = new Scalar[]
    {
        new("void", "void"),
        new("char", "byte"),
        new("int", "int"),
        new("unsigned int", "uint"),
        new("float", "float"),
        new("double", "double"),
        new("int8_t", "sbyte"),
        new("int16_t", "short"),
        new("int32_t", "int"),
        new("int64_t", "long"),
        new("uint8_t", "byte"),
        new("uint16_t", "ushort"),
        new("uint32_t", "uint"),
        new("uint64_t", "ulong"),
        new("size_t", "nuint"),
        new("uintptr_t", "nuint"),
        new("intptr_t", "nint"),
        new("ptrdiff_t", "nint"),
    }.ToFrozenDictionary(scalar => scalar.Spelling);

    private Scalar(string spelling, string managedName) => (Spelling, ManagedName) = (spelling, managedName);

    /// <summary>The name in C.</summary>
    public string Spelling { get; }

    /// <summary>The C# keyword of the type with the same size and values.</summary>
    public string ManagedName { get; }

    /// <summary>The scalar with this C name, or null if there is none.</summary>
    public static Scalar? Find(string spelling) => Known.GetValueOrDefault(spelling);
}
