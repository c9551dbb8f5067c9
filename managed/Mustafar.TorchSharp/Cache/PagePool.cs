using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Hands out pages of one size. They are cut from slabs, torch tensors of bytes that are never moved or enlarged, so what is in a
/// page stays where it is.
/// </summary>
internal sealed unsafe class PagePool(long pageBytes, torch.Device device) : IDisposable
{
    private readonly List<Tensor> _slabs = [];
    private readonly Stack<nint> _free = new();

    /// <summary>Size of a page.</summary>
    internal long PageBytes { get; } = pageBytes;

    /// <summary>Bytes of all slabs, pages in use and free ones.</summary>
    internal long Bytes { get; private set; }

    /// <summary>Addresses of pages that nobody else has. They are taken from returned ones first, then from one new slab.</summary>
    internal nint[] Rent(int count)
    {
        if (_free.Count < count)
        {
            Allocate(count - _free.Count);
        }

        nint[] pages = new nint[count];
        for (int i = 0; i < count; i++)
        {
            pages[i] = _free.Pop();
        }

        return pages;
    }

    /// <summary>Takes back a page.</summary>
    internal void Return(nint page) => _free.Push(page);

    /// <summary>Frees all slabs, whoever has their pages.</summary>
    public void Dispose()
    {
        foreach (Tensor slab in _slabs)
        {
            slab.Dispose();
        }

        _slabs.Clear();
        _free.Clear();
        Bytes = 0;
    }

    private void Allocate(int pages)
    {
        // A tensor made in inference mode could not be written to outside of it.
        using IDisposable mode = inference_mode(false);
        Tensor slab = empty([checked(pages * PageBytes)], dtype: ScalarType.Byte, device: device).DetachFromDisposeScope();
        _slabs.Add(slab);
        Bytes += pages * PageBytes;
        nint first = (nint)TensorAccess.Pointer(slab);
        for (int i = pages - 1; i >= 0; i--)
        {
            _free.Push(first + (nint)(i * PageBytes));
        }
    }
}
