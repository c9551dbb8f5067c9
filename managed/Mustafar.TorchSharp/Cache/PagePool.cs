using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// Hands out pages of one size. They are cut from slabs, torch tensors of bytes that are never moved or enlarged, so what is in a
/// page stays where it is. Several caches may own a pool and share pages; each gives back what it has before it disposes the pool.
/// </summary>
internal sealed unsafe class PagePool(long pageBytes, torch.Device device) : IDisposable
{
    private readonly List<Tensor> _slabs = [];
    private readonly Stack<nint> _free = new();
    private readonly Dictionary<nint, int> _sharers = []; // of a page, beyond the first
    private readonly object _lock = new();
    private int _owners = 1;

    /// <summary>Size of a page.</summary>
    internal long PageBytes { get; } = pageBytes;

    /// <summary>Bytes of all slabs, pages in use and free ones.</summary>
    internal long Bytes { get; private set; }

    /// <summary>An owner's equal part of <see cref="Bytes"/>.</summary>
    internal long BytesOfOwner => Bytes / Math.Max(1, _owners);

    /// <summary>Addresses of pages that nobody else has. They are taken from returned ones first, then from one new slab.</summary>
    internal nint[] Rent(int count)
    {
        lock (_lock)
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
    }

    /// <summary>Adds an owner, who is to dispose the pool too.</summary>
    internal PagePool AddOwner()
    {
        lock (_lock)
        {
            _owners++;
        }

        return this;
    }

    /// <summary>Adds a sharer of a page in use: it is free again when each of them has returned it.</summary>
    internal void Share(nint page)
    {
        lock (_lock)
        {
            _sharers[page] = _sharers.GetValueOrDefault(page) + 1;
        }
    }

    /// <summary>Takes back a page from one of those who have it.</summary>
    internal void Return(nint page)
    {
        lock (_lock)
        {
            if (!_sharers.Remove(page, out int others))
            {
                _free.Push(page);
            }
            else if (others > 1)
            {
                _sharers[page] = others - 1;
            }
        }
    }

    /// <summary>Frees all slabs once the last owner disposes the pool.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            if (--_owners > 0)
            {
                return;
            }
        }

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
