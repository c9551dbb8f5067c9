using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Mustafar.Native;

/// <summary>Finds and loads libmustafar, once, and checks that these bindings were made for it.</summary>
/// <remarks>
/// .NET searches the packages and the folder of the application, the folder that a single-file application was unpacked to and, through the
/// load context of this assembly, the packages of a plug-in or a notebook.
/// </remarks>
internal static unsafe class NativeLoader
{
    /// <summary>Environment variable that names the library's file or folder; it comes before all other places.</summary>
    internal const string PathVariable = "MUSTAFAR_NATIVE_PATH";

    private const string CudaLibraryName = "mustafar_cuda";

    private static readonly Lazy<nint> Library = new(() => Load(Environment.GetEnvironmentVariable(PathVariable)));

    private static readonly Lazy<bool> CudaLibrary = new(FindCuda);

#pragma warning disable CA2255 // the resolver must be in place before the first import is bound
    [ModuleInitializer]
    internal static void Register() => NativeLibrary.SetDllImportResolver(
        typeof(NativeLoader).Assembly, (name, _, _) => name == NativeMethods.LibraryName ? Library.Value : 0);
#pragma warning restore CA2255

    /// <summary>The library's file name on this system.</summary>
    internal static string FileName =>
        OperatingSystem.IsWindows() ? "mustafar.dll" : OperatingSystem.IsMacOS() ? "libmustafar.dylib" : "libmustafar.so";

    /// <summary>Loads the CUDA library from its own package; libmustafar itself only looks in its own folder and among loaded
    /// libraries.</summary>
    /// <returns>Whether it was found. If not, libmustafar reports the reason when it is called.</returns>
    internal static bool LoadCuda() => CudaLibrary.Value;

    /// <summary>Loads the library.</summary>
    /// <param name="path">Its file or folder; .NET's own search if null or empty.</param>
    /// <exception cref="DllNotFoundException">It could not be loaded; the message says what was tried and what to do.</exception>
    /// <exception cref="MustafarException">The library has another ABI version.</exception>
    internal static nint Load(string? path)
    {
        // An explicit choice is not silently replaced.
        bool isGiven = !string.IsNullOrEmpty(path);
        string file = !isGiven ? NativeMethods.LibraryName : Directory.Exists(path) ? Path.Combine(path, FileName) : path!;
        try
        {
            nint library = isGiven
                ? NativeLibrary.Load(file) : NativeLibrary.Load(file, typeof(NativeLoader).Assembly, null);
            CheckVersion(library, file);
            return library;
        }
        catch (Exception failure) when (failure is DllNotFoundException or BadImageFormatException)
        {
            string reason = Path.IsPathRooted(file) && !File.Exists(file) ? "no such file" : failure.Message;
            throw new DllNotFoundException(
                $"Mustafar's native library could not be loaded. Tried {(isGiven ? $"the path in {PathVariable}, " : string.Empty)}"
                + $"{file}: {reason}\nAdd the package Mustafar.TorchSharp.Cpu, or Mustafar.TorchSharp.Native.{RuntimeInformation.RuntimeIdentifier} "
                + $"of this version; or build the library with CMake and set the environment variable {PathVariable} to its file or folder.",
                failure);
        }
    }

    private static bool FindCuda() =>
        string.IsNullOrEmpty(Environment.GetEnvironmentVariable(PathVariable))
        && NativeLibrary.TryLoad(CudaLibraryName, typeof(NativeLoader).Assembly, null, out _);

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
