using System.Net;

namespace Mustafar.Tests;

/// <summary>The code that documents and XML comments show, and that of tests, to compare them: lines without comments and spaces around.</summary>
internal static class ShownCode
{
    /// <summary>Code of a source file.</summary>
    /// <param name="path">Its path in the repository.</param>
    internal static IEnumerable<string> OfSource(string path) => RepositoryFiles.Read(path).Split('\n').SelectMany(CodeOf);

    /// <summary>Code of the C# blocks of a document.</summary>
    internal static IEnumerable<string> OfMarkdown(string text)
    {
        bool inside = false;
        foreach (string line in text.Split('\n'))
        {
            if (line.StartsWith("```", StringComparison.Ordinal))
            {
                inside = line == "```csharp";
            }
            else if (inside)
            {
                foreach (string code in CodeOf(line))
                {
                    yield return code;
                }
            }
        }
    }

    /// <summary>Checks that the examples of a library's XML comments are those of a test, which runs them.</summary>
    /// <param name="library">Path of its project's folder in the repository.</param>
    /// <param name="test">Path of the test in the repository.</param>
    /// <param name="types">Names of the files that must have one.</param>
    internal static void AssertExamplesAreRun(string library, string test, params string[] types)
    {
        string[] run = [.. OfSource(test)];
        Dictionary<string, string[]> examples = [];
        foreach (string file in Directory.EnumerateFiles(RepositoryFiles.At(library), "*.cs", SearchOption.AllDirectories))
        {
            string[] shown = [.. OfComments(File.ReadAllText(file))];
            if (shown.Length > 0)
            {
                examples.Add(Path.GetFileNameWithoutExtension(file), shown);
            }
        }

        Assert.That(types, Is.SubsetOf(examples.Keys));
        Assert.Multiple(() =>
        {
            foreach ((string name, string[] shown) in examples)
            {
                Assert.That(shown, Is.SubsetOf(run), name);
            }
        });
    }

    // Code of the examples in XML comments.
    private static IEnumerable<string> OfComments(string text)
    {
        bool inside = false;
        foreach (string line in text.Split('\n').Select(line => line.Trim()).Where(line => line.StartsWith("///", StringComparison.Ordinal)))
        {
            string comment = line[3..].Trim();
            if (comment is "<example>" or "</example>")
            {
                inside = comment == "<example>";
            }
            else if (inside && comment is not ("<code>" or "</code>"))
            {
                foreach (string code in CodeOf(WebUtility.HtmlDecode(comment)))
                {
                    yield return code;
                }
            }
        }
    }

    private static string[] CodeOf(string line) => line.Split("//")[0].Trim() is { Length: > 0 } code ? [code] : [];
}
