namespace Mustafar.BindingGenerator.Model;

/// <summary>Where C# puts the fields of a struct, and a C compiler does by default.</summary>
/// <param name="Offsets">Bytes at which the fields start.</param>
/// <param name="Bytes">Size in bytes.</param>
/// <param name="Alignment">Alignment in bytes.</param>
public sealed record StructLayout(IReadOnlyList<int> Offsets, int Bytes, int Alignment)
{
    private const int PointerBytes = 8;
    private const int EnumBytes = 4;

    /// <summary>Lays out fields one after the other, each at the next multiple of its alignment.</summary>
    /// <param name="fields">The fields.</param>
    /// <param name="layouts">The layout of the struct with a name, for fields that are structs.</param>
    public static StructLayout Of(IEnumerable<StructField> fields, Func<string, StructLayout> layouts)
    {
        ArgumentNullException.ThrowIfNull(fields);
        ArgumentNullException.ThrowIfNull(layouts);
        List<int> offsets = [];
        int end = 0, alignment = 1;
        foreach (StructField field in fields)
        {
            (int bytes, int own) = field.Type switch
            {
                ScalarType { Scalar.Bytes: int scalar } => (scalar, scalar),
                EnumType => (EnumBytes, EnumBytes),
                StructType inner => (layouts(inner.Name).Bytes, layouts(inner.Name).Alignment),
                _ => (PointerBytes, PointerBytes),
            };
            own = Math.Max(1, own);
            offsets.Add(RoundUp(end, own));
            end = offsets[^1] + bytes;
            alignment = Math.Max(alignment, own);
        }

        return new StructLayout(offsets, RoundUp(end, alignment), alignment);
    }

    private static int RoundUp(int bytes, int alignment) => (bytes + alignment - 1) / alignment * alignment;
}
