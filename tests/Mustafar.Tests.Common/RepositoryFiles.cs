namespace Mustafar.Tests;

/// <summary>Files of the repository that the tests are built in.</summary>
internal static class RepositoryFiles
{
    /// <summary>The repository's folder: the nearest one above the tests that has the solution.</summary>
    internal static string Root { get; } = Find(TestContext.CurrentContext.TestDirectory);

    /// <summary>Full path of a file or folder.</summary>
    /// <param name="path">Its path from the root, with slashes.</param>
    internal static string At(string path) => Path.Combine([Root, .. path.Split('/')]);

    /// <summary>Text of a file.</summary>
    /// <param name="path">Its path from the root, with slashes.</param>
    internal static string Read(string path) => File.ReadAllText(At(path));

    private static string Find(string directory) => File.Exists(Path.Combine(directory, "Mustafar.TorchSharp.sln"))
        ? directory
        : Find(Path.GetDirectoryName(directory) ?? throw new DirectoryNotFoundException("The tests do not run in the repository."));
}
