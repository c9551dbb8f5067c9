using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Native;

/// <summary>A small array that native code reads or writes: lengths, page numbers, addresses of slabs.</summary>
/// <remarks>It is in memory that the back end can read. <see cref="Span"/> is that memory on the CPU, and the host's copy for a
/// device.</remarks>
internal sealed unsafe class BackendArray<T> : IDisposable
    where T : unmanaged
{
    private readonly Tensor _host;
    private readonly Tensor? _onDevice;
    private readonly T* _items;
    private T[]? _uploaded;

    internal BackendArray(int length, torch.Device device)
    {
        using IDisposable mode = inference_mode(false);
        Length = length;
        // An address is needed even for an empty array.
        ScalarType dtype = sizeof(T) == sizeof(long) ? ScalarType.Int64 : ScalarType.Int32;
        _host = zeros([Math.Max(1, length)], dtype: dtype, device: CPU).DetachFromDisposeScope();
        _items = (T*)TensorAccess.Pointer(_host);
        if (device.type != DeviceType.CPU)
        {
            _onDevice = zeros_like(_host, device: device).DetachFromDisposeScope();
        }

        Pointer = _onDevice is null ? _items : (T*)TensorAccess.Pointer(_onDevice);
    }

    internal int Length { get; }

    internal long Bytes => Math.Max(1, Length) * (long)sizeof(T);

    internal Span<T> Span => new(_items, Length);

    /// <summary>Address of the first item for native code; valid while this object is reachable and not disposed.</summary>
    internal T* Pointer { get; }

    /// <summary>The items in the memory that native code reads, Int32 or Int64 [length].</summary>
    internal Tensor Tensor => _onDevice ?? _host;

    /// <summary>Copies the content of <see cref="Span"/> to the device, in the order of its stream.</summary>
    internal void Upload()
    {
        using IDisposable noGrad = no_grad();
        // From pageable memory: the driver has copied the bytes when the call returns, and nothing waits for the device.
        _onDevice?.copy_(_host, nonBlocking: true);
    }

    /// <summary>Like <see cref="Upload"/>, but skips items that the previous call already copied: for arrays that only the host
    /// writes.</summary>
    internal void UploadChanged()
    {
        if (_onDevice is null || (_uploaded is not null && MemoryMarshal.AsBytes(Span).SequenceEqual(MemoryMarshal.AsBytes<T>(_uploaded))))
        {
            return;
        }

        Upload();
        _uploaded ??= new T[Length];
        Span.CopyTo(_uploaded);
    }

    /// <summary>Copies the device's content to <see cref="Span"/>, waiting for it.</summary>
    internal void Download()
    {
        using IDisposable noGrad = no_grad();
        if (_onDevice is not null)
        {
            _host.copy_(_onDevice);
        }
    }

    public void Dispose()
    {
        _host.Dispose();
        _onDevice?.Dispose();
    }
}
