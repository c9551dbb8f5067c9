using System.Globalization;
using System.Text.Json;
using Mustafar.BindingGenerator.Model;

namespace Mustafar.BindingGenerator.Clang;

/// <summary>Builds the model of a header from clang's JSON syntax tree.</summary>
public sealed class ClangHeaderReader
{
    private readonly HeaderBuilder builder = new();
    private readonly ClangTypeParser types;

    private ClangHeaderReader() => types = new ClangTypeParser(builder);

    /// <summary>Reads a header and the headers next to it that it includes; system headers are skipped.</summary>
    /// <param name="clang">The parser to use.</param>
    /// <param name="header">The header's path.</param>
    /// <exception cref="UnsupportedDeclarationException">The header has something that the bindings cannot express.</exception>
    /// <exception cref="BindingException">clang fails.</exception>
    public static HeaderModel Read(ClangTool clang, string header)
    {
        ArgumentNullException.ThrowIfNull(clang);
        header = Path.GetFullPath(header);
        using JsonDocument tree = clang.DumpSyntaxTree(header);
        string directory = Path.GetDirectoryName(header)!;
        var reader = new ClangHeaderReader();
        foreach ((string file, ClangNode declaration) in ClangNode.TopLevel(tree.RootElement))
        {
            if (file.Length > 0 && Path.GetDirectoryName(Path.GetFullPath(file)) == directory)
            {
                reader.ReadDeclaration(declaration);
            }
        }

        return reader.builder.Build();
    }

    private void ReadDeclaration(ClangNode node)
    {
        switch (node.Kind)
        {
            case "EnumDecl":
                ReadEnum(node);
                break;
            case "RecordDecl":
                ReadStruct(node);
                break;
            case "TypedefDecl":
                CheckTypedef(node);
                break;
            case "FunctionDecl":
                ReadFunction(node);
                break;
            case "EmptyDecl":
                break;
            default:
                throw new UnsupportedDeclarationException(
                    NameOr(node, "an unnamed declaration"), $"declarations of clang kind {node.Kind} are not supported");
        }
    }

    private void ReadEnum(ClangNode node)
    {
        RefuseAttributes(node, NameOr(node, "an unnamed enum"));
        var members = new List<(string Name, long Value)>();
        long next = 0;
        foreach (ClangNode member in node.Children.Where(child => child.Kind == "EnumConstantDecl"))
        {
            long value = ConstantValue(member) ?? next;
            members.Add((member.Name, value));
            next = value + 1;
        }

        builder.AddEnum(node.Name, members);
    }

    private static long? ConstantValue(ClangNode node)
    {
        foreach (ClangNode child in node.Children)
        {
            // The evaluated constant may be below a cast.
            long? value = child.Kind == "ConstantExpr"
                ? long.Parse(child.Text("value"), CultureInfo.InvariantCulture)
                : ConstantValue(child);
            if (value is not null)
            {
                return value;
            }
        }

        return null;
    }

    private void ReadStruct(ClangNode node)
    {
        string name = NameOr(node, $"an unnamed {node.Text("tagUsed")}");
        if (node.Text("tagUsed") != "struct")
        {
            throw new UnsupportedDeclarationException(name, "unions are not supported");
        }

        if (node.Name.Length == 0)
        {
            throw new UnsupportedDeclarationException(
                $"{name} with the fields {string.Join(", ", node.Children.Select(field => field.Name))}",
                "structs need a name (typedef struct x { ... } x)");
        }

        // Known before its fields are read: they may point to the struct itself.
        builder.DeclareStruct(name);
        if (node.Flag("completeDefinition"))
        {
            builder.DefineStruct(name, ReadFields(node, name));
        }
    }

    private List<StructField> ReadFields(ClangNode node, string structName)
    {
        RefuseAttributes(node, structName);
        var fields = new List<StructField>();
        foreach (ClangNode field in node.Children)
        {
            string name = $"{structName}.{NameOr(field, "(unnamed)")}";
            switch (field.Kind)
            {
                case "FieldDecl" when field.Flag("isBitfield"):
                    throw new UnsupportedDeclarationException(name, "bit fields are not supported");
                case "FieldDecl":
                    RefuseAttributes(field, name);
                    fields.Add(new StructField(field.Name, types.Parse(field.TypeText, name)));
                    break;
                case "RecordDecl" or "EnumDecl":
                    throw new UnsupportedDeclarationException(
                        name, $"a {field.Text("tagUsed")} inside a struct is not supported; declare structs and enums at the top level, no unions");
                default:
                    break;
            }
        }

        return fields;
    }

    // Packing and alignment would make the layout differ from the one that C# gives the same fields.
    private static void RefuseAttributes(ClangNode node, string declaration)
    {
        string? attribute = node.Children.Select(child => child.Kind)
            .FirstOrDefault(kind => kind.EndsWith("Attr", StringComparison.Ordinal));
        if (attribute is not null)
        {
            throw new UnsupportedDeclarationException(
                declaration, $"attributes on types and fields ({attribute}) are not supported: they may change the layout");
        }
    }

    private void CheckTypedef(ClangNode node)
    {
        // The tag and its typedef share one name, so the model needs no typedefs; anything else would hide a type.
        if (node.TypeText != $"struct {node.Name}" && node.TypeText != $"enum {node.Name}")
        {
            throw new UnsupportedDeclarationException(node.Name, node.TypeText.Contains("(*", StringComparison.Ordinal)
                ? $"function pointers are not supported (type {node.TypeText})"
                : $"a typedef may only name a struct or enum of the same name, not {node.TypeText}");
        }

        // clang writes the same for an enum without a tag.
        if (!builder.Knows(node.Name))
        {
            throw new UnsupportedDeclarationException(node.Name, "enums need a name (typedef enum x { ... } x)");
        }
    }

    private void ReadFunction(ClangNode node)
    {
        string name = node.Name;
        if (node.Flag("inline") || node.Text("storageClass") == "static")
        {
            throw new UnsupportedDeclarationException(name, "static and inline functions are not exported by a library");
        }

        if (node.Flag("variadic"))
        {
            throw new UnsupportedDeclarationException(name, "variable arguments are not supported");
        }

        // The return type is the part before the parameter list; one that is itself a function pointer encloses it.
        string type = node.TypeText;
        if (type.EndsWith("()", StringComparison.Ordinal))
        {
            throw new UnsupportedDeclarationException(name, "has no prototype; write (void) for an empty parameter list");
        }

        int list = type.IndexOf('(', StringComparison.Ordinal);
        string returnType = type.AsSpan(list).StartsWith("(*") ? type : type[..list];
        var parameters = new List<FunctionParameter>();
        foreach (ClangNode parameter in node.Children.Where(child => child.Kind == "ParmVarDecl"))
        {
            string parameterName = NameOr(parameter, $"(parameter {parameters.Count + 1})");
            parameters.Add(new FunctionParameter(parameter.Name, types.Parse(parameter.TypeText, $"{name}: {parameterName}")));
        }

        builder.AddFunction(new FunctionDeclaration(name, types.Parse(returnType, name), parameters));
    }

    private static string NameOr(ClangNode node, string alternative) => node.Name.Length > 0 ? node.Name : alternative;
}
