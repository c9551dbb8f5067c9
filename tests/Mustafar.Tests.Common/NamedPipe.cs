using System.Diagnostics;

namespace Mustafar.Tests;

/// <summary>A file that nobody can read to its end.</summary>
internal static class NamedPipe
{
    /// <summary>Makes a named pipe, for which .NET has no call.</summary>
    internal static void Make(string path)
    {
        using Process process = Process.Start("mkfifo", [path]);
        process.WaitForExit();
        Assert.That(process.ExitCode, Is.Zero);
    }
}
