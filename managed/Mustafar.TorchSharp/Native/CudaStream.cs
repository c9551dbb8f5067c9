using System.Runtime.InteropServices;

namespace Mustafar.Native;

/// <summary>The stream on which torch queues its work on a CUDA device.</summary>
internal static unsafe class CudaStream
{
    // Of torch's stable C interface; TorchSharp has no name for it. A libtorch without it has the default stream, 0.
    private static readonly Lazy<nint> Function = new(() =>
        NativeLibrary.TryLoad(OperatingSystem.IsWindows() ? "torch_cuda.dll" : "libtorch_cuda.so", out nint library)
        && NativeLibrary.TryGetExport(library, "aoti_torch_get_current_cuda_stream", out nint function) ? function : 0);

    /// <summary>The current stream of a device, a cudaStream_t.</summary>
    internal static void* Current(int deviceIndex)
    {
        void* stream = null;
        return Function.Value != 0 && ((delegate* unmanaged<int, void**, int>)Function.Value)(deviceIndex, &stream) == 0 ? stream : null;
    }
}
