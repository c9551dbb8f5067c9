using System.Reflection;
using System.Runtime.InteropServices;
using Mustafar.BindingGenerator;
using Mustafar.BindingGenerator.Clang;
using Mustafar.BindingGenerator.Model;
using Mustafar.Native;

namespace Mustafar.Tests.Bindings;

/// <summary>The generated imports against the library.</summary>
[TestFixture]
public sealed class NativeMethodsTests
{
    private static IEnumerable<TestCaseData> Imports() => typeof(NativeMethods)
        .GetMethods(BindingFlags.Static | BindingFlags.NonPublic | BindingFlags.DeclaredOnly)
        .Where(method => method.GetCustomAttribute<LibraryImportAttribute>() is not null)
        .Select(method => new TestCaseData(method).SetArgDisplayNames(method.Name));

    // Prelinking goes the way of a call: the resolver finds the library, then the entry point in it. That the method is
    // the import itself shows that nothing stands between: its signature is blittable.
    [TestCaseSource(nameof(Imports))]
    public void TheLibraryExportsWhatIsImported(MethodInfo import)
    {
        DllImportAttribute? target = import.GetCustomAttribute<DllImportAttribute>();

        Assert.That(target, Is.Not.Null, "the signature needs marshalling");
        Assert.That(target!.EntryPoint, Does.StartWith("mustafar_"));
        Assert.That(() => Marshal.Prelink(import), Throws.Nothing);
    }

    [Test]
    [Platform("Linux")]
    public void WhatTheLibraryExportsIsImportedAndNothingElse()
    {
        string library = Path.Combine(TestContext.CurrentContext.TestDirectory, NativeLoader.FileName);

        Assert.That(
            ElfSymbols.Exported(library),
            Is.EquivalentTo(Imports().Select(data => ((MethodInfo)data.Arguments[0]!).GetCustomAttribute<DllImportAttribute>()?.EntryPoint)));
    }

    [Test]
    public void EveryFunctionOfTheHeaderIsImported()
    {
        ClangTool clang = HeaderText.ClangOrIgnore();
        string header = Path.Combine(
            RepositoryFiles.Root, GeneratorCommand.HeaderPath);
        HeaderModel model = ClangHeaderReader.Read(clang, header);

        Assert.That(
            Imports().Select(data => ((MethodInfo)data.Arguments[0]!).GetCustomAttribute<DllImportAttribute>()?.EntryPoint),
            Is.EquivalentTo(model.Functions.Select(function => function.Name)));
    }
}
