using System.Runtime.CompilerServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Native;

/// <summary>A small array that native code reads or writes: lengths, page numbers, addresses of slabs.</summary>
/// <remarks>
/// It lies where the back end can read it: for the CPU in pinned managed memory, which <see cref="Span"/> shows; for a device in a
/// tensor, of which <see cref="Span"/> is the host's copy.
/// </remarks>
internal sealed unsafe class BackendArray<T> : IDisposable
    where T : unmanaged
{
    private readonly T[] _items;
    private readonly Tensor? _onDevice;
    private readonly T* _pointer;

    internal BackendArray(int length, torch.Device device)
    {
        Length = length;
        // An address is needed even for no items.
        _items = GC.AllocateArray<T>(Math.Max(1, length), pinned: true);
        if (device.type != DeviceType.CPU)
        {
            using IDisposable mode = inference_mode(false);
            _onDevice = zeros([Bytes], dtype: ScalarType.Byte, device: device).DetachFromDisposeScope();
        }

        _pointer = _onDevice is null ? Host : (T*)TensorAccess.Pointer(_onDevice);
    }

    internal int Length { get; }

    internal long Bytes => (long)_items.Length * sizeof(T);

    internal Span<T> Span => _items.AsSpan(0, Length);

    /// <summary>Address of the first item for native code; valid while this object is reachable.</summary>
    internal T* Pointer => _pointer;

    private T* Host => (T*)Unsafe.AsPointer(ref _items[0]);

    /// <summary>Brings what <see cref="Span"/> holds to the device, in the order of its stream.</summary>
    internal void Upload() => Copy(toDevice: true);

    /// <summary>Brings what the device holds to <see cref="Span"/>, waiting for it.</summary>
    internal void Download() => Copy(toDevice: false);

    public void Dispose() => _onDevice?.Dispose();

    private void Copy(bool toDevice)
    {
        if (_onDevice is null)
        {
            return;
        }

        using IDisposable noGrad = no_grad();
        using Tensor host = empty([Bytes], dtype: ScalarType.Byte, device: CPU);
        Span<byte> bytes = new(TensorAccess.Pointer(host), checked((int)Bytes));
        if (toDevice)
        {
            new Span<byte>(Host, bytes.Length).CopyTo(bytes);
            // From pageable memory: the driver has taken the bytes when the call returns, and nothing waits for the device.
            _onDevice.copy_(host, nonBlocking: true);
        }
        else
        {
            host.copy_(_onDevice);
            bytes.CopyTo(new Span<byte>(Host, bytes.Length));
        }
    }
}
