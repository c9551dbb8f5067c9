namespace Mustafar.BindingGenerator.Model;

/// <summary>What a C header declares, in its order. It does not depend on the parser that read it.</summary>
/// <param name="Enums">Named enums.</param>
/// <param name="Constants">Members of unnamed enums.</param>
/// <param name="Structs">Structs, including opaque ones.</param>
/// <param name="Functions">Exported functions.</param>
public sealed record HeaderModel(
    IReadOnlyList<EnumDeclaration> Enums,
    IReadOnlyList<EnumMember> Constants,
    IReadOnlyList<StructDeclaration> Structs,
    IReadOnlyList<FunctionDeclaration> Functions);

/// <summary>A named enum.</summary>
public sealed record EnumDeclaration(string Name, IReadOnlyList<EnumMember> Members);

/// <summary>An enum member and its value.</summary>
public sealed record EnumMember(string Name, int Value);

/// <summary>A struct.</summary>
/// <param name="Name">The tag, which is the name of its typedef as well.</param>
/// <param name="Fields">The fields; null if the header does not define the struct, so that only pointers to it are used.</param>
public sealed record StructDeclaration(string Name, IReadOnlyList<StructField>? Fields);

/// <summary>A struct's field.</summary>
public sealed record StructField(string Name, HeaderType Type);

/// <summary>A function.</summary>
public sealed record FunctionDeclaration(string Name, HeaderType ReturnType, IReadOnlyList<FunctionParameter> Parameters);

/// <summary>A function's parameter.</summary>
public sealed record FunctionParameter
{
    /// <summary>A parameter with this name and type.</summary>
    public FunctionParameter(string name, HeaderType type)
    {
        Name = name;
        // A parameter's own const is not part of the function's type: callers cannot tell.
        Type = type with { IsConst = false };
    }

    /// <summary>The name.</summary>
    public string Name { get; }

    /// <summary>The type.</summary>
    public HeaderType Type { get; }
}
