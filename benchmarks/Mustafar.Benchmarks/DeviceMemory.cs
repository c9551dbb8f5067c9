using System.Diagnostics;
using System.Runtime.InteropServices;
using Mustafar.Benchmarks.Cuda;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks;

/// <summary>Memory of a device that is in use. On CUDA by all processes, including what torch keeps for later; on the CPU by this
/// process.</summary>
internal static class DeviceMemory
{
    private const long MoreThanThereIs = 1L << 46; // bytes

    /// <summary>Bytes in use, up to a constant on CUDA.</summary>
    internal static long Used(Device device)
    {
        if (device.type == DeviceType.CUDA)
        {
            return -CudaRuntime.FreeMemory(Math.Max(0, device.index));
        }

        using Process process = Process.GetCurrentProcess();
        return process.WorkingSet64;
    }

    /// <summary>The most bytes in use since <see cref="Restart"/>, up to the same constant.</summary>
    internal static long Peak(Device device)
    {
        if (device.type == DeviceType.CUDA)
        {
            return Used(device); // torch gives nothing back by itself
        }

        using Process process = Process.GetCurrentProcess();
        return process.PeakWorkingSet64;
    }

    /// <summary>Bytes that are free.</summary>
    internal static long Free(Device device) => device.type == DeviceType.CUDA
        ? CudaRuntime.FreeMemory(Math.Max(0, device.index))
        : GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / 2;

    /// <summary>Frees what torch keeps for later, and resets the peak.</summary>
    internal static void Restart(Device device)
    {
        if (device.type == DeviceType.CUDA)
        {
            try
            {
                // TorchSharp doesn't expose it; torch does it when memory runs out.
                empty([MoreThanThereIs], dtype: ScalarType.Byte, device: device).Dispose();
            }
            catch (ExternalException)
            {
            }
        }
        else if (OperatingSystem.IsLinux())
        {
            File.WriteAllText("/proc/self/clear_refs", "5"); // the largest working set is the present one
        }
    }
}
