using System.Text.Json;

namespace Mustafar.BindingGenerator.Clang;

/// <summary>A node of clang's JSON syntax tree.</summary>
internal readonly struct ClangNode(JsonElement json)
{
    public string Kind => Text("kind");

    /// <summary>The declared name; empty if there is none.</summary>
    public string Name => Text("name");

    /// <summary>The type as clang writes it, typedefs kept.</summary>
    public string TypeText => json.GetProperty("type").GetProperty("qualType").GetString()!;

    public IEnumerable<ClangNode> Children =>
        json.TryGetProperty("inner", out JsonElement inner) ? inner.EnumerateArray().Select(child => new ClangNode(child)) : [];

    public string Text(string property) => json.TryGetProperty(property, out JsonElement value) ? value.GetString()! : "";

    public bool Flag(string property) => json.TryGetProperty(property, out JsonElement value) && value.GetBoolean();

    /// <summary>
    /// The file of each declaration at the top of a translation unit. clang only writes a file's name if it differs
    /// from the one written last, anywhere in the tree, so the whole tree is walked in order.
    /// </summary>
    public static IEnumerable<(string File, ClangNode Declaration)> TopLevel(JsonElement translationUnit)
    {
        string file = "";
        foreach (JsonElement declaration in translationUnit.GetProperty("inner").EnumerateArray())
        {
            string declaredIn = "";
            foreach (JsonProperty property in declaration.EnumerateObject())
            {
                file = LastFile(property, file);
                if (property.NameEquals("loc"))
                {
                    // A builtin has an empty location.
                    declaredIn = property.Value.EnumerateObject().Any() ? file : "";
                }
            }

            yield return (declaredIn, new ClangNode(declaration));
        }
    }

    private static string LastFile(JsonProperty property, string file)
    {
        // The location of an #include is always complete and does not take part in the omission.
        if (property.NameEquals("includedFrom"))
        {
            return file;
        }

        return property.NameEquals("file") && property.Value.ValueKind == JsonValueKind.String
            ? property.Value.GetString()!
            : LastFile(property.Value, file);
    }

    private static string LastFile(JsonElement element, string file) => element.ValueKind switch
    {
        JsonValueKind.Object => element.EnumerateObject().Aggregate(file, (last, property) => LastFile(property, last)),
        JsonValueKind.Array => element.EnumerateArray().Aggregate(file, (last, item) => LastFile(item, last)),
        _ => file,
    };
}
