using System.Collections.Frozen;
using Mustafar.BindingGenerator.Model;

namespace Mustafar.BindingGenerator.Emit;

/// <summary>How C names become C# names.</summary>
internal static class CSharpNames
{
    private const string LibraryPrefix = "mustafar_";

    // Words that are not written with one capital letter.
    private static readonly FrozenDictionary<string, string> Words =
        new Dictionary<string, string> { ["dtype"] = "DType" }.ToFrozenDictionary();

    // The keywords that C headers use as parameter names without being keywords of C.
    private static readonly FrozenSet<string> Keywords = FrozenSet.Create(
        "abstract", "as", "base", "bool", "byte", "catch", "checked", "class", "decimal", "delegate", "event", "explicit",
        "false", "finally", "fixed", "foreach", "implicit", "in", "interface", "internal", "is", "lock", "namespace", "new",
        "null", "object", "operator", "out", "override", "params", "private", "protected", "public", "readonly", "ref",
        "sbyte", "sealed", "stackalloc", "string", "this", "throw", "true", "try", "typeof", "uint", "ulong", "unchecked",
        "unsafe", "ushort", "using", "virtual");

    /// <summary>mustafar_block_bytes: BlockBytes.</summary>
    public static string Function(string name) => Pascal(WithoutLibraryPrefix(name));

    /// <summary>mustafar_format: NativeFormat, apart from the public types of the same notion.</summary>
    public static string Struct(string name) => "Native" + Pascal(WithoutLibraryPrefix(name));

    /// <summary>mustafar_cpu_variant: CpuVariant.</summary>
    public static string Enum(string name) => Pascal(WithoutLibraryPrefix(name));

    /// <summary>MUSTAFAR_CPU_VARIANT_AVX2 of mustafar_cpu_variant: Avx2.</summary>
    public static string EnumMember(string enumName, string member)
    {
        string name = member.ToLowerInvariant();
        return Pascal(name.StartsWith(enumName + "_", StringComparison.Ordinal)
            ? name[(enumName.Length + 1)..]
            : throw new UnsupportedDeclarationException(
                member, $"members of {enumName} start with {enumName.ToUpperInvariant()}_"));
    }

    /// <summary>MUSTAFAR_BLOCK_TOKENS: BlockTokens.</summary>
    public static string Constant(string name) => Pascal(WithoutLibraryPrefix(name.ToLowerInvariant()));

    /// <summary>head_dim: HeadDim.</summary>
    public static string Field(string name) => Pascal(name);

    /// <summary>head_dim: headDim.</summary>
    public static string Parameter(string name)
    {
        string pascal = Pascal(name);
        string camel = char.ToLowerInvariant(pascal[0]) + pascal[1..];
        return Keywords.Contains(camel) ? "@" + camel : camel;
    }

    private static string WithoutLibraryPrefix(string name) =>
        name.StartsWith(LibraryPrefix, StringComparison.Ordinal)
            ? name[LibraryPrefix.Length..]
            : throw new UnsupportedDeclarationException(name, $"names of the library start with {LibraryPrefix}");

    private static string Pascal(string name)
    {
        string pascal = string.Concat(name.Split('_', StringSplitOptions.RemoveEmptyEntries).Select(
            word => Words.GetValueOrDefault(word) ?? char.ToUpperInvariant(word[0]) + word[1..]));
        return pascal.Length > 0 && !char.IsAsciiDigit(pascal[0]) ? pascal : "_" + pascal;
    }
}
