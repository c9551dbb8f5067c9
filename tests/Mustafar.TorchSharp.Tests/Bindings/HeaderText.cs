using Mustafar.BindingGenerator.Clang;
using Mustafar.BindingGenerator.Model;

namespace Mustafar.Tests.Bindings;

/// <summary>Headers written by tests.</summary>
internal static class HeaderText
{
    /// <summary>Ends the test as ignored where there is no clang to read a header with.</summary>
    public static ClangTool ClangOrIgnore()
    {
        ClangTool? clang = ClangTool.Find(Environment.GetEnvironmentVariable("PATH"));
        if (clang is null)
        {
            Assert.Ignore("No clang on PATH: headers cannot be read.");
        }

        return clang!;
    }

    /// <summary>Reads a header of this text, and one beside it named beside.h.</summary>
    public static HeaderModel Read(string text, string beside = "")
    {
        ClangTool clang = ClangOrIgnore();
        string directory = Directory.CreateTempSubdirectory("mustafar-header-").FullName;
        try
        {
            string path = Path.Combine(directory, "sample.h");
            File.WriteAllText(path, text);
            File.WriteAllText(Path.Combine(directory, "beside.h"), beside);
            return ClangHeaderReader.Read(clang, path);
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    /// <summary>The function's prototype.</summary>
    public static string Prototype(FunctionDeclaration function) =>
        $"{function.ReturnType.Spelling} {function.Name}"
        + $"({string.Join(", ", function.Parameters.Select(parameter => $"{parameter.Type.Spelling} {parameter.Name}"))})";
}
