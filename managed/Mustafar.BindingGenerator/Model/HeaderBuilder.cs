namespace Mustafar.BindingGenerator.Model;

/// <summary>Collects what a reader finds in a header, in its order, and rejects what the bindings cannot express.</summary>
public sealed class HeaderBuilder
{
    private readonly List<EnumDeclaration> enums = [];
    private readonly List<EnumMember> constants = [];
    private readonly List<StructDeclaration> structs = [];
    private readonly List<FunctionDeclaration> functions = [];

    /// <summary>What was collected.</summary>
    public HeaderModel Build() => new([.. enums], [.. constants], [.. structs], [.. functions]);

    /// <summary>Adds an enum; one that was added before is ignored.</summary>
    /// <param name="name">The tag; empty for an enum of constants.</param>
    /// <param name="members">Names and values.</param>
    /// <exception cref="UnsupportedDeclarationException">A value does not fit a C int.</exception>
    public void AddEnum(string name, IEnumerable<(string Name, long Value)> members)
    {
        EnumMember[] checkedMembers = [.. members.Select(member => member.Value is >= int.MinValue and <= int.MaxValue
            ? new EnumMember(member.Name, (int)member.Value)
            : throw new UnsupportedDeclarationException(member.Name, $"the value {member.Value} does not fit a 32-bit int"))];
        if (name.Length == 0)
        {
            constants.AddRange(checkedMembers);
        }
        else if (!enums.Exists(known => known.Name == name))
        {
            enums.Add(new EnumDeclaration(name, checkedMembers));
        }
    }

    /// <summary>Registers a struct's name; it is opaque until it is defined.</summary>
    public void DeclareStruct(string name)
    {
        if (!structs.Exists(known => known.Name == name))
        {
            structs.Add(new StructDeclaration(name, Fields: null));
        }
    }

    /// <summary>Gives a declared struct its fields.</summary>
    /// <exception cref="UnsupportedDeclarationException">There are none.</exception>
    public void DefineStruct(string name, IReadOnlyList<StructField> fields)
    {
        ArgumentNullException.ThrowIfNull(fields);
        if (fields.Count == 0)
        {
            throw new UnsupportedDeclarationException(name, "structs without fields are not supported");
        }

        structs[structs.FindIndex(known => known.Name == name)] = new StructDeclaration(name, fields);
    }

    /// <summary>Adds a function; one that was added before is ignored.</summary>
    public void AddFunction(FunctionDeclaration function)
    {
        ArgumentNullException.ThrowIfNull(function);
        if (!functions.Exists(known => known.Name == function.Name))
        {
            functions.Add(function);
        }
    }

    /// <summary>Whether the name is that of a registered struct or enum, or of a scalar.</summary>
    public bool Knows(string name) =>
        Scalar.Find(name) is not null || structs.Exists(known => known.Name == name) || enums.Exists(known => known.Name == name);

    /// <summary>The type with this name: a scalar, or a struct or enum registered so far.</summary>
    /// <param name="name">The name, without <c>struct</c> or <c>enum</c>.</param>
    /// <param name="isConst">Whether it is const.</param>
    /// <param name="text">The whole type, for the message of an exception.</param>
    /// <param name="declaration">The declaration whose type it is, for the same.</param>
    /// <exception cref="UnsupportedDeclarationException">There is no such type.</exception>
    public HeaderType NamedType(string name, bool isConst, string text, string declaration)
    {
        if (Scalar.Find(name) is { } scalar)
        {
            return new ScalarType(scalar, isConst);
        }

        if (structs.Exists(known => known.Name == name))
        {
            return new StructType(name, isConst);
        }

        return enums.Exists(known => known.Name == name)
            ? new EnumType(name, isConst)
            : throw new UnsupportedDeclarationException(
                declaration,
                $"type {text} is not supported; use a type of <stdint.h>, size_t, char, int, float, double or a struct or enum of the header");
    }
}
