using System.ComponentModel;
using CppSharp;
using CppSharp.AST;
using CppSharp.Generators;
using Mustafar.BindingGenerator.Model;

namespace Mustafar.BindingGenerator.Reader;

/// <summary>Builds the model of a header from CppSharp's syntax tree.</summary>
public static class CppSharpHeaderReader
{
    /// <summary>Reads a header and the headers next to it that it includes; system headers are skipped.</summary>
    /// <param name="header">The header's path.</param>
    /// <exception cref="UnsupportedDeclarationException">The header holds something that the bindings cannot express.</exception>
    /// <exception cref="BindingException">CppSharp fails.</exception>
    public static HeaderModel Read(string header)
    {
        // CppSharp may go on to write files of its own, which are not wanted.
        string scratch = Directory.CreateTempSubdirectory("mustafar-cppsharp-").FullName;
        try
        {
            var library = new Library(Path.GetFullPath(header), scratch);
            Run(library);
            return library.Failure is null
                ? library.Model ?? throw new BindingException($"CppSharp cannot read {header}; the reason is printed above.")
                : throw library.Failure;
        }
        finally
        {
            Directory.Delete(scratch, recursive: true);
        }
    }

    private static void Run(Library library)
    {
        try
        {
            // Its result, in versions that return one, concerns its own bindings. The model shows whether the header was read.
            ConsoleDriver.Run(library);
        }
        catch (Win32Exception exception)
        {
            throw new BindingException(
                $"CppSharp needs a C++ compiler's include directories, but cannot run a compiler: {exception.Message}. Put gcc on the PATH, or "
                + "set the environment variable CXX to a program, without arguments.");
        }
        catch (Exception) when (library.Model is not null || library.Failure is not null)
        {
            // From what CppSharp goes on to do with types that it cannot bind; the header has been read.
        }
    }

    private sealed class Library(string header, string outputDirectory) : ILibrary
    {
        public HeaderModel? Model { get; private set; }

        // Kept until the driver has returned, since it must not be unwound here.
        public BindingException? Failure { get; private set; }

        public void Setup(Driver driver)
        {
            driver.Options.GeneratorKind = GeneratorKind.CSharp;
            driver.Options.OutputDir = outputDirectory;
            driver.Options.DryRun = true;
            driver.Options.GenerationOutputMode = GenerationOutputMode.FilePerModule;
            Module module = driver.Options.AddModule("mustafar");
            module.SharedLibraryName = "mustafar";
            module.OutputNamespace = "Mustafar";
            module.IncludeDirs.Add(Path.GetDirectoryName(header)!);
            module.Headers.Add(Path.GetFileName(header));
        }

        public void SetupPasses(Driver driver)
        {
        }

        // Before CppSharp's passes rename anything.
        public void Preprocess(Driver driver, ASTContext context)
        {
            try
            {
                string directory = Path.GetDirectoryName(header)!;
                TranslationUnit[] files = [.. context.TranslationUnits.Where(unit =>
                    unit.IsValid && !unit.IsSystemHeader && Path.GetDirectoryName(Path.GetFullPath(unit.FilePath, directory)) == directory)];
                Model = files.Any(file => file.FileName == Path.GetFileName(header))
                    ? AstReader.Read(files)
                    : throw new BindingException(
                        $"CppSharp parsed {header} but reports no declarations; it skips headers below a system include directory.");
            }
            catch (BindingException failure)
            {
                Failure = failure;
            }
        }

        public void Postprocess(Driver driver, ASTContext context)
        {
        }
    }
}
