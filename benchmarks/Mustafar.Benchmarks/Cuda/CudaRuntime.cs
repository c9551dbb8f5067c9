using System.Runtime.InteropServices;
using TorchSharp;

namespace Mustafar.Benchmarks.Cuda;

/// <summary>What TorchSharp doesn't expose: streams, events and graphs of the CUDA runtime that libtorch has loaded.</summary>
internal static unsafe class CudaRuntime
{
    private const uint NonBlocking = 1;
    private const int RelaxedCapture = 2;

    private static readonly nint Library = Load("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll");
    private static readonly nint Torch = Load("libtorch_cuda.so", "torch_cuda.dll");

    /// <summary>Bytes of a device's memory that no process has allocated and torch doesn't keep for later.</summary>
    internal static long FreeMemory(int device)
    {
        Check(((delegate* unmanaged<int, int>)Function(Library, "cudaSetDevice"))(device));
        nuint free, total;
        Check(((delegate* unmanaged<nuint*, nuint*, int>)Function(Library, "cudaMemGetInfo"))(&free, &total));
        return (long)free;
    }

    /// <summary>The name of a device.</summary>
    internal static string DeviceName(int device)
    {
        // The name is the first member of cudaDeviceProp, which is longer in later versions.
        const int structLength = 8192;
        byte* properties = stackalloc byte[structLength];
        Check(((delegate* unmanaged<byte*, int, int>)Function(Library, "cudaGetDeviceProperties"))(properties, device));
        return Marshal.PtrToStringUTF8((nint)properties) ?? $"CUDA device {device}";
    }

    internal static nint CreateStream()
    {
        nint stream;
        Check(((delegate* unmanaged<nint*, uint, int>)Function(Library, "cudaStreamCreateWithFlags"))(&stream, NonBlocking));
        return stream;
    }

    internal static void Synchronize(nint stream) =>
        Check(((delegate* unmanaged<nint, int>)Function(Library, "cudaStreamSynchronize"))(stream));

    /// <summary>Makes a stream torch's current one on this thread; disposing the result restores the former one.</summary>
    internal static nint EnterStream(nint stream, int device)
    {
        nint guard;
        Check(((delegate* unmanaged<nint, int, nint*, int>)Function(Torch, "aoti_torch_create_cuda_stream_guard"))(stream, device, &guard));
        return guard;
    }

    internal static void LeaveStream(nint guard) =>
        Check(((delegate* unmanaged<nint, int>)Function(Torch, "aoti_torch_delete_cuda_stream_guard"))(guard));

    internal static void BeginCapture(nint stream) =>
        Check(((delegate* unmanaged<nint, int, int>)Function(Library, "cudaStreamBeginCapture"))(stream, RelaxedCapture));

    /// <summary>What was captured, ready to launch.</summary>
    internal static nint EndCapture(nint stream)
    {
        nint graph, executable;
        Check(((delegate* unmanaged<nint, nint*, int>)Function(Library, "cudaStreamEndCapture"))(stream, &graph));
        Check(((delegate* unmanaged<nint*, nint, ulong, int>)Function(Library, "cudaGraphInstantiateWithFlags"))(&executable, graph, 0));
        Check(((delegate* unmanaged<nint, int>)Function(Library, "cudaGraphDestroy"))(graph));
        return executable;
    }

    /// <summary>Ends a failed capture and drops what was captured.</summary>
    internal static void AbandonCapture(nint stream)
    {
        nint graph;
        if (((delegate* unmanaged<nint, nint*, int>)Function(Library, "cudaStreamEndCapture"))(stream, &graph) == 0 && graph != 0)
        {
            Check(((delegate* unmanaged<nint, int>)Function(Library, "cudaGraphDestroy"))(graph));
        }
    }

    internal static void Launch(nint executable, nint stream) =>
        Check(((delegate* unmanaged<nint, nint, int>)Function(Library, "cudaGraphLaunch"))(executable, stream));

    internal static void DestroyGraph(nint executable) =>
        Check(((delegate* unmanaged<nint, int>)Function(Library, "cudaGraphExecDestroy"))(executable));

    internal static nint CreateEvent()
    {
        nint created;
        Check(((delegate* unmanaged<nint*, int>)Function(Library, "cudaEventCreate"))(&created));
        return created;
    }

    internal static void Record(nint created, nint stream) =>
        Check(((delegate* unmanaged<nint, nint, int>)Function(Library, "cudaEventRecord"))(created, stream));

    /// <summary>Microseconds between two events, the second of which has happened.</summary>
    internal static double Elapsed(nint first, nint second)
    {
        float milliseconds;
        Check(((delegate* unmanaged<nint, int>)Function(Library, "cudaEventSynchronize"))(second));
        Check(((delegate* unmanaged<float*, nint, nint, int>)Function(Library, "cudaEventElapsedTime"))(&milliseconds, first, second));
        return milliseconds * 1e3;
    }

    /// <summary>Sets whether torch may choose one of its implementations of scaled_dot_product_attention.</summary>
    /// <param name="name">Flash, MemEfficient, CuDNN or Math.</param>
    /// <param name="enabled">Whether it may.</param>
    internal static void AllowSdpa(string name, bool enabled)
    {
        // A C++ interface that TorchSharp wraps only in part. These are its symbols in libtorch for Linux.
        nint cpu = Load("libtorch_cpu.so");
        nint context = ((delegate* unmanaged<nint>)Function(cpu, "_ZN2at13globalContextEv"))();
        string method = $"setSDPUse{name}";
        ((delegate* unmanaged<nint, byte, void>)Function(cpu, $"_ZN2at7Context{method.Length}{method}Eb"))(context, enabled ? (byte)1 : (byte)0);
    }

    private static nint Load(params string[] names)
    {
        torch.InitializeDeviceType(DeviceType.CUDA);
        foreach (string name in names)
        {
            if (NativeLibrary.TryLoad(name, out nint library))
            {
                return library;
            }
        }

        throw new NotSupportedException($"None of {string.Join(", ", names)} can be loaded.");
    }

    private static nint Function(nint library, string name) => NativeLibrary.GetExport(library, name);

    private static void Check(int status)
    {
        if (status != 0)
        {
            throw new InvalidOperationException($"A call of the CUDA runtime failed with status {status}.");
        }
    }
}
