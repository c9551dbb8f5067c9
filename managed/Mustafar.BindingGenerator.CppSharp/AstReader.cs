using CppSharp.AST;
using Mustafar.BindingGenerator.Model;
using Ast = CppSharp.AST;
using StructLayout = Mustafar.BindingGenerator.Model.StructLayout;

namespace Mustafar.BindingGenerator.Reader;

/// <summary>Turns CppSharp's declarations into the model. CppSharp sorts them by kind, so their positions in the file give the
/// order.</summary>
internal sealed class AstReader
{
    private readonly HeaderBuilder builder = new();
    private readonly Dictionary<string, StructLayout> layouts = [];

    private AstReader()
    {
    }

    /// <summary>The model of these files.</summary>
    /// <exception cref="UnsupportedDeclarationException">They hold something that the bindings cannot express.</exception>
    public static HeaderModel Read(IEnumerable<TranslationUnit> files)
    {
        TranslationUnit[] units = [.. files];
        var reader = new AstReader();
        Refuse(units.SelectMany(unit => unit.Variables), "variables are not supported");
        foreach (Enumeration declared in InOrder(units, unit => unit.Enums))
        {
            reader.builder.AddEnum(TagName(declared), declared.Items.Select(item => (item.Name, Value(declared, item))));
            if (declared.BuiltinType.Type is not (PrimitiveType.Int or PrimitiveType.UInt))
            {
                throw new UnsupportedDeclarationException(declared.Name, "an enum of another size than int is not supported");
            }
        }

        // All names before any field: fields point to any of them.
        Class[] structs = [.. InOrder(units, unit => unit.Classes)];
        foreach (Class declared in structs)
        {
            reader.builder.DeclareStruct(StructName(declared));
        }

        foreach (Class declared in structs.Where(declared => !declared.IsIncomplete))
        {
            List<StructField> fields = reader.Fields(declared);
            reader.CheckLayout(declared, fields);
            reader.builder.DefineStruct(declared.Name, fields);
        }

        foreach (Function declared in InOrder(units, unit => unit.Functions))
        {
            reader.builder.AddFunction(reader.Function(declared));
        }

        reader.CheckTypedefs(units.SelectMany(unit => unit.Typedefs));
        return reader.builder.Build();
    }

    private static IEnumerable<T> InOrder<T>(IEnumerable<TranslationUnit> units, Func<TranslationUnit, IEnumerable<T>> declarations)
        where T : Declaration =>
        units.SelectMany(unit => declarations(unit).OrderBy(FirstLine));

    // What is declared first and defined later keeps the place of its declaration.
    private static int FirstLine(Declaration declared) =>
        declared.Redeclarations.Select(other => other.LineNumberStart).Append(declared.LineNumberStart).Min();

    private static void Refuse(IEnumerable<Declaration> declarations, string reason)
    {
        if (declarations.FirstOrDefault() is { } declared)
        {
            throw new UnsupportedDeclarationException(declared.Name, reason);
        }
    }

    // An enum without a tag has no name, or one that no header could write: (unnamed enum at ...).
    private static string TagName(Declaration declared) =>
        declared.Name is { Length: > 0 } name && name.All(letter => char.IsAsciiLetterOrDigit(letter) || letter == '_') ? name : "";

    // The parser returns the bits of a value as an unsigned number. In a type other than int, one that fits an int is not negative.
    private static long Value(Enumeration declared, Enumeration.Item item) =>
        declared.BuiltinType.Type is PrimitiveType.Int ? unchecked((int)item.Value) : (long)Math.Min(item.Value, long.MaxValue);

    private static string StructName(Class declared)
    {
        if (declared.IsUnion)
        {
            throw new UnsupportedDeclarationException(declared.Name, "unions are not supported");
        }

        return TagName(declared) is { Length: > 0 } name
            ? name
            : throw new UnsupportedDeclarationException(
                $"an unnamed struct with the fields {string.Join(", ", declared.Fields.Select(field => field.Name))}",
                "structs need a name (typedef struct x { ... } x)");
    }

    private List<StructField> Fields(Class declared)
    {
        var fields = new List<StructField>();
        foreach (Field field in declared.Fields)
        {
            string name = $"{declared.Name}.{field.Name}";
            if (field.IsBitField)
            {
                throw new UnsupportedDeclarationException(name, "bit fields are not supported");
            }

            fields.Add(new StructField(field.Name, Type(field.QualifiedType, name)));
        }

        return fields;
    }

    // CppSharp only shows the effect of packing and alignment.
    private void CheckLayout(Class declared, List<StructField> fields)
    {
        StructLayout natural = StructLayout.Of(fields, name => layouts[name]);
        layouts[declared.Name] = natural;
        ClassLayout actual = declared.Layout;
        if (actual.Size != natural.Bytes || actual.Alignment != natural.Alignment
            || !actual.Fields.Select(field => (int)field.Offset).SequenceEqual(natural.Offsets))
        {
            throw new UnsupportedDeclarationException(
                declared.Name, "packed and aligned structs and fields are not supported: C# would ignore the attribute in its layout");
        }
    }

    private FunctionDeclaration Function(Function declared)
    {
        // The only trace of "static": the mangled name of a function that no other file sees.
        if (declared.IsInline || declared.Mangled.StartsWith("_ZL", StringComparison.Ordinal))
        {
            throw new UnsupportedDeclarationException(declared.Name, "static and inline functions are not exported by a library");
        }

        if (declared.IsVariadic)
        {
            throw new UnsupportedDeclarationException(declared.Name, "variable arguments are not supported");
        }

        return new FunctionDeclaration(
            declared.Name,
            Type(declared.ReturnType, declared.Name),
            [.. declared.Parameters.Select(parameter => new FunctionParameter(
                parameter.Name, ParameterType(parameter.QualifiedType, $"{declared.Name}: {parameter.Name}")))]);
    }

    // To C a parameter that is an array is a pointer to its first element.
    private HeaderType ParameterType(QualifiedType type, string declaration) => type.Type is ArrayType array
        ? new Model.PointerType(Type(array.QualifiedType, declaration))
        : Type(type, declaration);

    private void CheckTypedefs(IEnumerable<TypedefNameDecl> typedefs)
    {
        // The tag and its typedef share one name, so the model needs no typedefs; anything else would hide a type.
        if (typedefs.FirstOrDefault(declared => !builder.Knows(declared.Name)) is { } other)
        {
            throw new UnsupportedDeclarationException(
                other.Name, $"a typedef may only name a struct or enum of the same name, not {other.Type}");
        }
    }

    private HeaderType Type(QualifiedType type, string declaration)
    {
        if (type.Qualifiers.IsVolatile)
        {
            throw new UnsupportedDeclarationException(declaration, $"volatile is not supported (type {type.Type})");
        }

        bool isConst = type.Qualifiers.IsConst;
        return type.Type switch
        {
            Ast.PointerType { Pointee: FunctionType } =>
                throw new UnsupportedDeclarationException(declaration, $"function pointers are not supported (type {type.Type})"),
            Ast.PointerType pointer => new Model.PointerType(Type(pointer.QualifiedPointee, declaration), isConst),
            BuiltinType builtin => builder.NamedType(Keyword(builtin.Type), isConst, Keyword(builtin.Type), declaration),
            TypedefType named => builder.NamedType(named.Declaration.Name, isConst, named.Declaration.Name, declaration),
            TagType tag => builder.NamedType(tag.Declaration.Name, isConst, tag.Declaration.Name, declaration),
            ArrayType => throw new UnsupportedDeclarationException(
                declaration, $"arrays are not supported (type {type.Type}); pass a pointer"),
            _ => throw new UnsupportedDeclarationException(declaration, $"type {type.Type} is not supported"),
        };
    }

    // C's names for types without a typedef; any other name is rejected.
    private static string Keyword(PrimitiveType type) => type switch
    {
        PrimitiveType.Void => "void",
        PrimitiveType.Char => "char",
        PrimitiveType.Int => "int",
        PrimitiveType.UInt => "unsigned int",
        PrimitiveType.Float => "float",
        PrimitiveType.Double => "double",
        _ => type.ToString(),
    };
}
