using System.Text.RegularExpressions;
using Mustafar.BindingGenerator.Model;

namespace Mustafar.BindingGenerator.Clang;

/// <summary>Reads types as clang writes them: <c>const mustafar_format *</c>, <c>void *const *</c>.</summary>
/// <param name="header">What is declared so far.</param>
internal sealed partial class ClangTypeParser(HeaderBuilder header)
{
    /// <param name="text">The type.</param>
    /// <param name="declaration">The declaration whose type it is, for the message of an exception.</param>
    /// <exception cref="UnsupportedDeclarationException">The bindings cannot express the type.</exception>
    public HeaderType Parse(string text, string declaration)
    {
        if (text.Contains('('))
        {
            throw new UnsupportedDeclarationException(declaration, text.Contains("(*")
                ? $"function pointers are not supported (type {text})"
                : $"unnamed types are not supported (type {text}); give the type a name");
        }

        if (text.Contains('['))
        {
            throw new UnsupportedDeclarationException(declaration, $"arrays are not supported (type {text}); pass a pointer");
        }

        var names = new List<string>();
        bool isConst = false;
        HeaderType? type = null;
        foreach (string token in Token().Matches(text).Select(match => match.Value))
        {
            switch (token)
            {
                case "*":
                    type = new PointerType(type ?? Named(names, isConst, text, declaration));
                    break;
                case "const" when type is null:
                    isConst = true;
                    break;
                case "const":
                    type = type with { IsConst = true };
                    break;
                case "restrict" or "__restrict" or "struct" or "enum":
                    break;
                default:
                    names.Add(token);
                    break;
            }
        }

        return type ?? Named(names, isConst, text, declaration);
    }

    private HeaderType Named(List<string> names, bool isConst, string text, string declaration) =>
        header.NamedType(string.Join(' ', names), isConst, text, declaration);

    [GeneratedRegex(@"\*|\w+")]
    private static partial Regex Token();
}
