using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text.Json.Nodes;
using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;

namespace Mustafar.Tests.DropIn;

/// <summary>A runtime that emits no code, as NativeAOT: this test again in a process that says so of itself.</summary>
[TestFixture]
public sealed class RuntimeTests
{
    private const string Switch = "System.Runtime.CompilerServices.RuntimeFeature.IsDynamicCodeSupported";

    [Test]
    public void ARuntimeThatEmitsNoCodeIsRefused()
    {
        if (RuntimeFeature.IsDynamicCodeSupported)
        {
            RunWithoutDynamicCode();
            return;
        }

        using Subject subject = Subject.Make("llm-sharp");
        Assert.That(
            () => subject.Model.UseMustafar(), Throws.TypeOf<NotSupportedException>().With.Message.Contains("NativeAOT"));
    }

    private static void RunWithoutDynamicCode()
    {
        string tests = typeof(RuntimeTests).Assembly.Location;
        JsonNode configuration = JsonNode.Parse(File.ReadAllText(Path.ChangeExtension(tests, ".runtimeconfig.json")))!;
        configuration["runtimeOptions"]!["configProperties"]![Switch] = false;
        using TemporaryDirectory directory = new();
        string file = directory.File("tests.runtimeconfig.json");
        File.WriteAllText(file, configuration.ToJsonString());
        string host = Path.Combine(RuntimeEnvironment.GetRuntimeDirectory(), "..", "..", "..", "dotnet");
        ProcessStartInfo start = new(
            host, ["exec", "--runtimeconfig", file, tests, "--filter", $"FullyQualifiedName~{nameof(ARuntimeThatEmitsNoCodeIsRefused)}"])
        {
            RedirectStandardOutput = true,
        };
        using Process process = Process.Start(start)!;
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.That(process.ExitCode, Is.Zero, output);
        Assert.That(output, Does.Contain("succeeded: 1"));
    }
}
