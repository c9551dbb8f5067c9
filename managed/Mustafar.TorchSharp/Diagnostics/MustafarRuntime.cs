using System.Reflection;
using System.Runtime.InteropServices;
using Mustafar.Native;
using TorchSharp;

namespace Mustafar;

/// <summary>Versions, instruction sets and devices in use. For logs, bug reports and decisions at startup.</summary>
/// <remarks>Members that need the native library load it and throw the exceptions of loading.</remarks>
/// <example>
/// <code>
/// Console.WriteLine(MustafarRuntime.Describe());
/// torch.Device device = MustafarRuntime.WhyNoCuda is null ? torch.CUDA : torch.CPU;
/// </code>
/// </example>
public static unsafe class MustafarRuntime
{
    // The names that MUSTAFAR_CPU_VARIANT accepts.
    private static readonly (CpuVariant Variant, string Name)[] s_variants =
    [
        (Native.CpuVariant.Scalar, "scalar"),
        (Native.CpuVariant.Avx2, "avx2"),
        (Native.CpuVariant.Avx512Core, "avx512core"),
        (Native.CpuVariant.Avx512, "avx512"),
        (Native.CpuVariant.Avx512Bf16, "avx512bf16"),
        (Native.CpuVariant.Neon, "neon"),
    ];

    /// <summary>Version of this library, such as <c>0.1.0</c>.</summary>
    public static string Version { get; } =
        typeof(MustafarRuntime).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0]
        ?? typeof(MustafarRuntime).Assembly.GetName().Version?.ToString(3)
        ?? "unknown";

    /// <summary>Version of the native library that was loaded.</summary>
    /// <exception cref="DllNotFoundException">There is none; the message lists where it was searched for.</exception>
    public static string NativeVersion => Marshal.PtrToStringUTF8((nint)NativeMethods.Version()) ?? string.Empty;

    /// <summary>The instruction set that CPU calls use: the fastest that the processor supports, or the one that the environment variable
    /// <c>MUSTAFAR_CPU_VARIANT</c> names.</summary>
    /// <exception cref="DllNotFoundException">There is no native library.</exception>
    /// <exception cref="NotSupportedException">The environment variable names one that the processor does not support.</exception>
    public static string CpuVariant
    {
        get
        {
            int variant = NativeMethods.DefaultCpuVariant();
            return variant != (int)Native.CpuVariant.Auto
                ? Array.Find(s_variants, item => (int)item.Variant == variant).Name
                : throw new NotSupportedException(Marshal.PtrToStringUTF8((nint)NativeMethods.LastError()));
        }
    }

    /// <summary>All instruction sets that the processor supports, simplest first: the possible values of <c>MUSTAFAR_CPU_VARIANT</c>
    /// here.</summary>
    /// <exception cref="DllNotFoundException">There is no native library.</exception>
    public static IReadOnlyList<string> CpuVariants
    {
        get
        {
            uint bits = NativeMethods.CpuVariants();
            return [.. s_variants.Where(item => (bits >> (int)item.Variant & 1) != 0).Select(item => item.Name)];
        }
    }

    /// <summary>Why caches and operations don't support CUDA tensors here; null if they do.</summary>
    public static string? WhyNoCuda
    {
        get
        {
            if (!torch.cuda.is_available())
            {
                return "torch finds no CUDA device, or was built without CUDA.";
            }

            try
            {
                CacheShape shape = new(new() { NumKvHeads = 1, HeadDim = 128 }, torch.ScalarType.Float16, torch.CUDA);
                new LayerFormat(shape, new MustafarOptions()).CheckServed(shape);
                return null;
            }
            catch (Exception exception) when (exception is NotSupportedException or DllNotFoundException or MustafarException)
            {
                return exception.Message;
            }
        }
    }

    /// <summary>All of this in one line of English text.</summary>
    /// <exception cref="DllNotFoundException">There is no native library.</exception>
    public static string Describe() =>
        $"Mustafar.TorchSharp {Version} with native library {NativeVersion} on {RuntimeInformation.RuntimeIdentifier}, CPU {CpuVariant} (of {string.Join(", ", CpuVariants)}), CUDA {(WhyNoCuda is string why ? $"no: {why}" : "yes")}";
}
