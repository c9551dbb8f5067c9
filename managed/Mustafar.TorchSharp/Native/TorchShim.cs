using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Native;

/// <summary>Operators of libtorch that TorchSharp does not wrap, through libtorch's C interface for compiled models.</summary>
/// <remarks>
/// An AtenTensorHandle of that interface is an at::Tensor*, as is <see cref="Tensor.Handle"/>. The functions are those of
/// torch/csrc/inductor/aoti_torch (libtorch 2.10). The properties tell whether a libtorch has them. Tensors are not checked here.
/// </remarks>
internal static unsafe class TorchShim
{
    private static readonly Lazy<nint> Common = new(() => Library("torch_cpu"));
    private static readonly Lazy<nint> Cuda = new(() => Library("torch_cuda"));
    private static readonly Lazy<nint> DeleteTensor = new(() => Find(Common.Value, "aoti_torch_delete_tensor_object"));
    private static readonly Lazy<nint> CpuProduct = new(() => Find(Common.Value, "aoti_torch_cpu_mm_out"));
    private static readonly Lazy<nint> CudaProduct = new(() => Find(Cuda.Value, "aoti_torch_cuda_mm_out"));
    private static readonly Lazy<nint> CpuAdded = new(() => Find(Common.Value, "aoti_torch_cpu_addmm_out"));
    private static readonly Lazy<nint> CudaAdded = new(() => Find(Cuda.Value, "aoti_torch_cuda_addmm_out"));
    private static readonly Lazy<nint> Flash = new(() => Find(Cuda.Value, "aoti_torch_cuda__scaled_dot_product_flash_attention"));
    private static readonly Lazy<nint> CpuFlash = new(() => Find(Common.Value, "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu"));
    private static readonly Lazy<nint> CuDnn = new(() => Find(Cuda.Value, "aoti_torch_cuda__scaled_dot_product_cudnn_attention"));
    private static readonly Lazy<nint> EnterStream = new(() => Find(Cuda.Value, "aoti_torch_create_cuda_stream_guard"));
    private static readonly Lazy<nint> LeaveStream = new(() => Find(Cuda.Value, "aoti_torch_delete_cuda_stream_guard"));
    private static readonly Lazy<nint> CurrentStreamOf = new(() => Find(Cuda.Value, "aoti_torch_get_current_cuda_stream"));

    /// <summary>Whether <see cref="Product"/> and <see cref="AddProduct"/> can be used on a device.</summary>
    internal static bool HasProducts(torch.Device device) => device.type switch
    {
        DeviceType.CPU => CpuProduct.Value != 0 && CpuAdded.Value != 0,
        DeviceType.CUDA => CudaProduct.Value != 0 && CudaAdded.Value != 0,
        _ => false,
    };

    /// <summary>Whether <see cref="FlashAttention"/> can be used.</summary>
    internal static bool HasFlash => Flash.Value != 0 && DeleteTensor.Value != 0;

    /// <summary>Whether <see cref="CpuFlashAttention"/> can be used.</summary>
    internal static bool HasCpuFlash => CpuFlash.Value != 0;

    /// <summary>Whether <see cref="CuDnnAttention"/> can be used.</summary>
    internal static bool HasCuDnn => CuDnn.Value != 0 && DeleteTensor.Value != 0;

    /// <summary>Whether <see cref="UseStream"/> can be used.</summary>
    internal static bool HasStreams => EnterStream.Value != 0 && LeaveStream.Value != 0;

    /// <summary>The stream on which torch queues this thread's work on a device, a cudaStream_t; the default stream, null, if libtorch
    /// can't tell.</summary>
    internal static void* CurrentStream(int deviceIndex)
    {
        void* stream = null;
        return CurrentStreamOf.Value != 0 && ((delegate* unmanaged<int, void**, int>)CurrentStreamOf.Value)(deviceIndex, &stream) == 0
            ? stream
            : null;
    }

    /// <summary>Makes torch queue this thread's work on a stream, until the result is disposed on the same thread.</summary>
    internal static IDisposable UseStream(void* stream, int deviceIndex)
    {
        nint guard;
        Check(((delegate* unmanaged<void*, int, nint*, int>)EnterStream.Value)(stream, deviceIndex, &guard), "a stream");
        return new StreamGuard(guard);
    }

    /// <summary>output = left · right, of matrices [m, k] and [k, n].</summary>
    internal static void Product(Tensor output, Tensor left, Tensor right)
    {
        nint function = output.device_type == DeviceType.CPU ? CpuProduct.Value : CudaProduct.Value;
        Check(((delegate* unmanaged<nint, nint, nint, int>)function)(output.Handle, left.Handle, right.Handle), "mm");
        KeepAlive(output, left, right);
    }

    /// <summary>output += left · right, of matrices [m, k] and [k, n].</summary>
    internal static void AddProduct(Tensor output, Tensor left, Tensor right)
    {
        nint function = output.device_type == DeviceType.CPU ? CpuAdded.Value : CudaAdded.Value;
        Check(
            ((delegate* unmanaged<nint, nint, nint, nint, double, double, int>)function)(
                output.Handle, output.Handle, left.Handle, right.Handle, 1, 1),
            "addmm");
        KeepAlive(output, left, right);
    }

    /// <summary>Attention by FlashAttention (arXiv 2307.08691) on CUDA, for Float16 and BFloat16 and head_dim up to 256.</summary>
    /// <param name="query">[batch, num_heads, queries, head_dim].</param>
    /// <param name="keys">[batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="values">[batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="causal">Whether a query only sees the tokens up to its own; the last query belongs to the last token.</param>
    /// <param name="scale">Factor of the scores.</param>
    /// <returns>The output, like the query, and the natural logarithm of each row's sum of exponentials, Float32
    /// [batch, num_heads, queries], in the current dispose scope.</returns>
    internal static (Tensor Output, Tensor LogSumExp) FlashAttention(Tensor query, Tensor keys, Tensor values, bool causal, double scale)
    {
        // Output, log-sum-exp, cumulative lengths of queries and keys, seed, offset, mask: the caller frees all of them.
        nint* made = stackalloc nint[7];
        new Span<nint>(made, 7).Clear();
        long mostQueries, mostKeys;
        int status = ((delegate* unmanaged<nint, nint, nint, double, int, int, double*, nint*, nint*, nint*, nint*, long*, long*, nint*, nint*, nint*, int>)Flash.Value)(
            query.Handle, keys.Handle, values.Handle, 0, causal ? 1 : 0, 0, &scale,
            made, made + 1, made + 2, made + 3, &mostQueries, &mostKeys, made + 4, made + 5, made + 6);
        Check(status, "scaled_dot_product_attention (Flash)");
        KeepAlive(query, keys, values);
        Delete(made + 2, 5);
        return (Tensor.UnsafeCreateTensor(made[0]), Tensor.UnsafeCreateTensor(made[1]));
    }

    /// <summary>The same on the CPU, for Float32 too.</summary>
    /// <param name="query">[batch, heads, queries, head_dim].</param>
    /// <param name="keys">[batch, heads, tokens, head_dim], with any strides except that of head_dim.</param>
    /// <param name="values">[batch, heads, tokens, head_dim], likewise.</param>
    /// <param name="causal">Whether query i only sees tokens up to i.</param>
    /// <param name="scale">Factor of the scores.</param>
    /// <returns>The output and the log-sum-exp, like <see cref="FlashAttention"/>.</returns>
    internal static (Tensor Output, Tensor LogSumExp) CpuFlashAttention(Tensor query, Tensor keys, Tensor values, bool causal, double scale)
    {
        nint output, logSumExp;
        int status = ((delegate* unmanaged<nint, nint, nint, double, int, nint*, double*, nint*, nint*, int>)CpuFlash.Value)(
            query.Handle, keys.Handle, values.Handle, 0, causal ? 1 : 0, null, &scale, &output, &logSumExp);
        Check(status, "scaled_dot_product_attention (Flash)");
        KeepAlive(query, keys, values);
        return (Tensor.UnsafeCreateTensor(output), Tensor.UnsafeCreateTensor(logSumExp));
    }

    /// <summary>Attention by cuDNN on CUDA, for Float16 and BFloat16 and head_dim up to 128.</summary>
    /// <param name="query">[batch, num_heads, queries, head_dim].</param>
    /// <param name="keys">[batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="values">[batch, num_kv_heads, tokens, head_dim].</param>
    /// <param name="bias">Added to the scores, [batch, num_heads, queries, tokens] in the queries' type, with any strides; null for none.</param>
    /// <param name="causal">Whether query i only sees tokens up to i.</param>
    /// <param name="scale">Factor of the scores.</param>
    /// <returns>The output, like the query, in the current dispose scope.</returns>
    internal static Tensor CuDnnAttention(Tensor query, Tensor keys, Tensor values, Tensor? bias, bool causal, double scale)
    {
        nint* made = stackalloc nint[7];
        new Span<nint>(made, 7).Clear();
        long mostQueries, mostKeys;
        nint added = bias?.Handle ?? 0;
        int status = ((delegate* unmanaged<nint, nint, nint, nint*, int, double, int, int, double*, nint*, nint*, nint*, nint*, long*, long*, nint*, nint*, nint*, int>)CuDnn.Value)(
            query.Handle, keys.Handle, values.Handle, bias is null ? null : &added, 0, 0, causal ? 1 : 0, 0, &scale,
            made, made + 1, made + 2, made + 3, &mostQueries, &mostKeys, made + 4, made + 5, made + 6);
        Check(status, "scaled_dot_product_attention (cuDNN)");
        KeepAlive(query, keys, values);
        GC.KeepAlive(bias);
        Delete(made + 1, 6);
        return Tensor.UnsafeCreateTensor(made[0]);
    }

    private static void Delete(nint* tensors, int count)
    {
        for (int i = 0; i < count; i++)
        {
            if (tensors[i] != 0)
            {
                _ = ((delegate* unmanaged<nint, int>)DeleteTensor.Value)(tensors[i]);
            }
        }
    }

    private static void KeepAlive(Tensor first, Tensor second, Tensor third)
    {
        GC.KeepAlive(first);
        GC.KeepAlive(second);
        GC.KeepAlive(third);
    }

    // libtorch writes the error to the standard error stream; its C interface only returns the status.
    private static void Check(int status, string what)
    {
        if (status != 0)
        {
            throw new MustafarException($"libtorch failed to run {what} (status {status}); the reason is on the standard error stream.");
        }
    }

    private static nint Library(string name)
    {
        // TorchSharp's own loading comes first: it knows the location of libtorch.
        using (empty(0))
        {
        }

        string file = OperatingSystem.IsWindows() ? $"{name}.dll" : OperatingSystem.IsMacOS() ? $"lib{name}.dylib" : $"lib{name}.so";
        return NativeLibrary.TryLoad(file, typeof(Tensor).Assembly, null, out nint library)
            || NativeLibrary.TryLoad(file, typeof(TorchShim).Assembly, null, out library) ? library : 0;
    }

    private static nint Find(nint library, string name) => library != 0 && NativeLibrary.TryGetExport(library, name, out nint function) ? function : 0;

    private sealed class StreamGuard(nint guard) : IDisposable
    {
        private nint _guard = guard;

        public void Dispose()
        {
            if (Interlocked.Exchange(ref _guard, 0) is nint entered and not 0)
            {
                _ = ((delegate* unmanaged<nint, int>)LeaveStream.Value)(entered);
            }
        }
    }
}
