using System.Diagnostics;
using System.Text.Json;
using Mustafar.BindingGenerator.Model;

namespace Mustafar.BindingGenerator.Clang;

/// <summary>A clang executable.</summary>
public sealed class ClangTool
{
    private const int OldestVersion = 14;
    private const int NewestVersion = 20;

    private readonly string path;

    private ClangTool(string path) => this.path = path;

    /// <summary>The first clang in the directories of <paramref name="searchPath"/>, or null if there is none.</summary>
    /// <param name="searchPath">Directories, separated as in the environment variable PATH.</param>
    public static ClangTool? Find(string? searchPath)
    {
        string extension = OperatingSystem.IsWindows() ? ".exe" : "";
        string[] directories = (searchPath ?? "").Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries);
        return ExecutableNames()
            .SelectMany(name => directories.Select(directory => Path.Combine(directory, name + extension)))
            .Where(File.Exists)
            .Select(file => new ClangTool(file))
            .FirstOrDefault();
    }

    /// <summary>The first clang on PATH.</summary>
    /// <exception cref="BindingException">There is none.</exception>
    public static ClangTool FindOnPath() =>
        Find(Environment.GetEnvironmentVariable("PATH"))
        ?? throw new BindingException(
            $"No clang found on PATH (tried {string.Join(", ", ExecutableNames())}). Install clang {OldestVersion} or newer.");

    /// <summary>Parses a C header and returns clang's JSON dump of its syntax tree.</summary>
    /// <param name="header">The header's path.</param>
    /// <exception cref="BindingException">clang cannot be run or finds errors in the header.</exception>
    public JsonDocument DumpSyntaxTree(string header)
    {
        var start = new ProcessStartInfo(path) { RedirectStandardOutput = true, RedirectStandardError = true };
        string[] arguments = ["-x", "c", "-std=c11", "-fsyntax-only", "-Xclang", "-ast-dump=json", header];
        foreach (string argument in arguments)
        {
            start.ArgumentList.Add(argument);
        }

        using Process process = Process.Start(start) ?? throw new BindingException($"{path} did not start.");
        // Both pipes are drained at once: clang blocks when either is full.
        Task<string> errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        if (process.ExitCode != 0)
        {
            throw new BindingException($"{path} cannot parse {header}:{Environment.NewLine}{errors.Result}");
        }

        return JsonDocument.Parse(output, new JsonDocumentOptions { MaxDepth = 4096 });
    }

    private static IEnumerable<string> ExecutableNames() =>
        Enumerable.Range(OldestVersion, NewestVersion - OldestVersion + 1).Reverse()
            .Select(version => $"clang-{version}").Prepend("clang");
}
