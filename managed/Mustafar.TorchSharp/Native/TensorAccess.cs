using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Native;

/// <summary>What the native library needs to know about tensors.</summary>
internal static unsafe partial class TensorAccess
{
    /// <summary>A variant that replaces the automatic choice, so that tests can cover each; null in production.</summary>
    internal static CpuVariant? ForcedVariant { get; set; }

    /// <summary>Where and how a call on tensors of this device runs. It follows torch's number of threads.</summary>
    /// <exception cref="NotSupportedException">There is no back end for the device.</exception>
    internal static NativeContext Context(torch.Device device) => device.type switch
    {
        DeviceType.CPU => new NativeContext
        {
            Device = (int)Device.Cpu,
            NumThreads = get_num_threads(),
            CpuVariant = (int)(ForcedVariant ?? CpuVariant.Auto),
        },
        DeviceType.CUDA => CudaContext(Math.Max(0, device.index)),
        _ => throw new NotSupportedException($"Mustafar runs on the CPU and on CUDA devices, not on {device}."),
    };

    private static NativeContext CudaContext(int index)
    {
        NativeLoader.LoadCuda();
        return new NativeContext { Device = (int)Device.Cuda, DeviceIndex = index, Stream = TorchShim.CurrentStream(index) };
    }

    /// <summary>The order in which a device's kernels read keys or values. Formats without such an order are in plain order.</summary>
    internal static Order OrderFor(torch.Device device, bool keys) => device.type == DeviceType.CPU
        ? keys ? Order.KeyQuads : Order.ValueQuads
        : keys ? Order.KeyFragment : Order.ValueFragment;

    /// <summary>How values with this number of bits are stored.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such format.</exception>
    internal static ValueFormat ValueFormatOf(int bits) => bits switch
    {
        16 => ValueFormat.Native,
        8 => ValueFormat.Int8,
        4 => ValueFormat.Int4,
        _ => throw new ArgumentOutOfRangeException(nameof(bits), bits, "Expected 16 bits (not quantised), 8 or 4."),
    };

    /// <summary>The device with its index, even if it came without one.</summary>
    internal static torch.Device Resolve(torch.Device device)
    {
        if (device.type != DeviceType.CUDA || device.index >= 0)
        {
            return device;
        }

        using Tensor probe = empty([1], device: device);
        return probe.device;
    }

    internal static DType DTypeOf(ScalarType type) => type switch
    {
        ScalarType.Float32 => DType.F32,
        ScalarType.Float16 => DType.F16,
        ScalarType.BFloat16 => DType.Bf16,
        _ => throw new ArgumentException($"Expected Float32, Float16 or BFloat16, but got {type}."),
    };

    internal static int ElementBytes(ScalarType type) => type == ScalarType.Float32 ? 4 : 2;

    /// <summary>Address of a tensor's first element; valid while the tensor is alive.</summary>
    internal static void* Pointer(Tensor tensor) => (void*)TensorData(tensor.Handle);

    /// <summary>Address of the first element of an optional Float32 tensor.</summary>
    internal static float* Floats(Tensor? tensor) => tensor is null ? null : (float*)Pointer(tensor);

    /// <summary>A tensor [batch, heads, tokens, head_dim] as the native library sees it. Keep the tensor alive past the call.</summary>
    internal static NativeDense Dense(Tensor tensor) => new()
    {
        Data = Pointer(tensor),
        BatchStride = tensor.stride(0),
        HeadStride = tensor.stride(1),
        TokenStride = tensor.stride(2),
    };

    /// <summary>The tensor itself if its rows are contiguous, otherwise a contiguous copy in the current dispose scope.</summary>
    internal static Tensor WithContiguousRows(Tensor tensor) =>
        tensor.stride(3) == 1 || tensor.size(3) == 1 ? tensor : tensor.contiguous();

    /// <summary>The tensor itself if its rows consist of aligned pieces of 16 bytes, otherwise such a copy in the current dispose scope,
    /// if head_dim allows it.</summary>
    /// <remarks>torch's fused attention kernels on CUDA read rows in such pieces, and some do not check the alignment.</remarks>
    internal static Tensor WithAlignedRows(Tensor tensor)
    {
        const int bytes = 16;
        int elements = bytes / ElementBytes(tensor.dtype);
        bool aligned = (nuint)Pointer(tensor) % bytes == 0
            && tensor.stride(3) == 1
            && tensor.stride(2) % elements == 0
            && tensor.stride(1) % elements == 0
            && tensor.stride(0) % elements == 0;
        return aligned ? tensor : empty(tensor.Sizes(), dtype: tensor.dtype, device: tensor.device).copy_(tensor);
    }

    /// <summary>Checks a tensor [batch, heads, tokens, head_dim] that does not depend on any other.</summary>
    internal static void Validate(Tensor tensor, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.dtype is not (ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
        {
            throw new ArgumentException($"Expected Float32, Float16 or BFloat16, but got {tensor.dtype}.", name);
        }

        if (tensor.is_sparse)
        {
            throw new ArgumentException("Expected a strided tensor, but got a sparse one.", name);
        }

        if (tensor.dim() != 4)
        {
            throw new ArgumentException(
                $"Expected shape [batch, heads, tokens, head_dim], but got [{string.Join(", ", tensor.shape)}].", name);
        }
    }

    /// <summary>Checks that a tensor has the given type, device and shape.</summary>
    internal static void Validate(Tensor tensor, string name, ScalarType type, torch.Device device, params ReadOnlySpan<long> shape)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.dtype != type)
        {
            throw new ArgumentException($"Expected {type}, but got {tensor.dtype}.", name);
        }

        if (tensor.device_type != device.type || (device.index >= 0 && tensor.device_index != device.index))
        {
            throw new ArgumentException($"Expected a tensor on {device}, but got one on {tensor.device}.", name);
        }

        if (tensor.is_sparse)
        {
            throw new ArgumentException("Expected a strided tensor, but got a sparse one.", name);
        }

        if (!shape.SequenceEqual(tensor.Sizes()))
        {
            throw new ArgumentException(
                $"Expected shape [{string.Join(", ", shape.ToArray())}], but got [{string.Join(", ", tensor.shape)}].", name);
        }
    }

    /// <summary>A workspace of that many bytes for attention, with its counters zero, in the current dispose scope.</summary>
    internal static Tensor Workspace(long bytes, torch.Device device)
    {
        Tensor workspace = empty([Math.Max(1, bytes)], dtype: ScalarType.Byte, device: device);
        if (device.type != DeviceType.CPU)
        {
            using Tensor counters = workspace.narrow(0, 0, Math.Min(workspace.numel(), NativeConstants.WorkspaceCounterBytes));
            counters.zero_();
        }

        return workspace;
    }

    // TorchSharp's typed accessors don't support Half and BFloat16; this works for every type and honours the storage offset.
    [LibraryImport("LibTorchSharp", EntryPoint = "THSTensor_data")]
    private static partial nint TensorData(nint tensor);
}
