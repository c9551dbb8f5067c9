using System.CommandLine;
using Mustafar.BindingGenerator.Emit;
using Mustafar.BindingGenerator.Model;

namespace Mustafar.BindingGenerator;

/// <summary>The command line: writes the imports, or checks that the file in the repository is up to date.</summary>
public static class GeneratorCommand
{
    /// <summary>The C header, from the repository's root.</summary>
    public const string HeaderPath = "native/include/mustafar/mustafar.h";

    /// <summary>The generated file, from the repository's root.</summary>
    public const string OutputPath = "managed/Mustafar.TorchSharp/Native/NativeMethods.g.cs";

    /// <summary>Runs the command.</summary>
    /// <param name="read">Reads the header with this path.</param>
    /// <param name="args">The command line's arguments.</param>
    /// <param name="directory">A directory of the repository.</param>
    /// <param name="output">Receives what was done.</param>
    /// <param name="error">Receives what went wrong.</param>
    /// <returns>0: done; 1: wrong arguments, not up to date, or the header cannot be bound.</returns>
    public static int Run(
        Func<string, HeaderModel> read, IReadOnlyList<string> args, string directory, TextWriter output, TextWriter error)
    {
        var check = new Option<bool>("--check")
        {
            Description = "Write nothing; exit with 1 if the file in the repository is out of date.",
        };
        var command = new RootCommand("Writes the C# imports of the native library from its C header.") { check };
        command.SetAction(parsed => Guard(
            () => parsed.GetValue(check) ? Check(read, FindRoot(directory), output, error) : Write(read, FindRoot(directory), output),
            error));
        return command.Parse(args).Invoke(new InvocationConfiguration { Output = output, Error = error });
    }

    /// <summary>The repository's root: the nearest directory at or above <paramref name="directory"/> that has the header.</summary>
    /// <exception cref="BindingException">There is none.</exception>
    public static string FindRoot(string directory)
    {
        for (string? root = Path.GetFullPath(directory); root is not null; root = Path.GetDirectoryName(root))
        {
            if (File.Exists(Path.Combine(root, HeaderPath)))
            {
                return root;
            }
        }

        throw new BindingException($"Neither {directory} nor a directory above it has {HeaderPath}. Run inside the repository.");
    }

    private static int Guard(Func<int> action, TextWriter error)
    {
        try
        {
            return action();
        }
        catch (Exception exception) when (exception is BindingException or IOException or UnauthorizedAccessException)
        {
            error.WriteLine(exception.Message);
            return 1;
        }
    }

    private static string Generate(Func<string, HeaderModel> read, string root) =>
        CSharpEmitter.Emit(read(Path.Combine(root, HeaderPath)));

    private static int Write(Func<string, HeaderModel> read, string root, TextWriter output)
    {
        string path = Path.Combine(root, OutputPath);
        string generated = Generate(read, root);
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        File.WriteAllText(path, generated);
        output.WriteLine($"Wrote {path}");
        return 0;
    }

    private static int Check(Func<string, HeaderModel> read, string root, TextWriter output, TextWriter error)
    {
        string path = Path.Combine(root, OutputPath);
        // A checkout may have converted line ends to the platform's.
        string committed = File.Exists(path) ? File.ReadAllText(path).ReplaceLineEndings("\n") : "";
        string[] expected = Generate(read, root).Split('\n');
        string[] actual = committed.Split('\n');
        int same = expected.Zip(actual).TakeWhile(pair => pair.First == pair.Second).Count();
        if (same == expected.Length && same == actual.Length)
        {
            output.WriteLine($"{OutputPath} is up to date.");
            return 0;
        }

        error.WriteLine($"{OutputPath} does not match {HeaderPath}; the first difference is in line {same + 1}:");
        error.WriteLine($"  expected: {expected.ElementAtOrDefault(same) ?? "(end of file)"}");
        error.WriteLine($"  actual:   {actual.ElementAtOrDefault(same) ?? "(end of file)"}");
        error.WriteLine("Run: dotnet run --project managed/Mustafar.BindingGenerator");
        return 1;
    }
}
