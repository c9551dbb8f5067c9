using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;

namespace Mustafar.Native;

/// <summary>Finds and loads libmustafar, once, and checks that it is the one these bindings were made for.</summary>
internal static unsafe class NativeLoader
{
    /// <summary>Environment variable that names the library's file or folder; it comes before all other places.</summary>
    internal const string PathVariable = "MUSTAFAR_NATIVE_PATH";

    private static readonly Lazy<nint> Library = new(() => Load(Candidates()));

#pragma warning disable CA2255 // the resolver must be in place before the first import is bound
    [ModuleInitializer]
    internal static void Register() => NativeLibrary.SetDllImportResolver(
        typeof(NativeLoader).Assembly, (name, _, _) => name == NativeMethods.LibraryName ? Library.Value : 0);
#pragma warning restore CA2255

    private static string FileName =>
        OperatingSystem.IsWindows() ? "mustafar.dll" : OperatingSystem.IsMacOS() ? "libmustafar.dylib" : "libmustafar.so";

    /// <summary>Where the library may be, in the order of preference.</summary>
    internal static IEnumerable<string> Candidates()
    {
        if (Environment.GetEnvironmentVariable(PathVariable) is { Length: > 0 } path)
        {
            yield return Directory.Exists(path) ? Path.Combine(path, FileName) : path;
            yield break; // an explicit choice is not silently replaced
        }

        string? assembly = Path.GetDirectoryName(typeof(NativeLoader).Assembly.Location);
        foreach (string folder in new[] { assembly, AppContext.BaseDirectory }.OfType<string>().Where(folder => folder.Length > 0)
            .Select(Path.TrimEndingDirectorySeparator).Distinct())
        {
            yield return Path.Combine(folder, FileName);
            yield return Path.Combine(folder, "runtimes", RuntimeInformation.RuntimeIdentifier, "native", FileName);
        }

        yield return FileName; // wherever the system's loader looks
    }

    /// <summary>Loads the first candidate that can be loaded.</summary>
    /// <exception cref="DllNotFoundException">None could; the message lists each place and why.</exception>
    /// <exception cref="MustafarException">The library has another ABI version.</exception>
    internal static nint Load(IEnumerable<string> candidates)
    {
        StringBuilder tried = new();
        foreach (string path in candidates)
        {
            try
            {
                nint library = NativeLibrary.Load(path);
                CheckVersion(library, path);
                return library;
            }
            catch (Exception failure) when (failure is DllNotFoundException or BadImageFormatException)
            {
                string reason = Path.IsPathRooted(path) && !File.Exists(path) ? "no such file" : failure.Message.ReplaceLineEndings(" ");
                tried.Append("\n  ").Append(path).Append(": ").Append(reason);
            }
        }

        throw new DllNotFoundException(
            $"Mustafar's native library could not be loaded. Tried:{tried}\n"
            + "Reference the Mustafar.TorchSharp package for this platform, build the library with CMake, or set the environment "
            + $"variable {PathVariable} to its file or folder.");
    }

    private static void CheckVersion(nint library, string path)
    {
        if (!NativeLibrary.TryGetExport(library, "mustafar_abi_version", out nint function))
        {
            throw new MustafarException($"{path} is not Mustafar's library: it does not export mustafar_abi_version.");
        }

        int version = ((delegate* unmanaged<int>)function)();
        if (version != (int)Abi.Version)
        {
            throw new MustafarException(
                $"{path} has ABI version {version}, but this assembly needs {(int)Abi.Version}. Use the library of the same release.");
        }
    }
}
