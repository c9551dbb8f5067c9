namespace Mustafar.Tests;

/// <summary>A directory that is deleted with this object.</summary>
internal sealed class TemporaryDirectory : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("mustafar-").FullName;

    public string File(string name) => System.IO.Path.Combine(Path, name);

    /// <summary>Copies all files of another directory here.</summary>
    public TemporaryDirectory With(string directory)
    {
        foreach (string file in Directory.EnumerateFiles(directory))
        {
            System.IO.File.Copy(file, File(System.IO.Path.GetFileName(file)), overwrite: true);
        }

        return this;
    }

    public void Dispose() => Directory.Delete(Path, recursive: true);
}
