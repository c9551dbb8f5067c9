using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// Caches that continue sequences of another one.
public sealed unsafe partial class MustafarCache
{
    /// <inheritdoc/>
    /// <remarks>
    /// Pages are shared, and only the dense window is copied: a page is full when it is written and never changes. Forks may be used by
    /// different threads, on a CUDA device as long as they use one stream.
    /// </remarks>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public override MustafarCache Fork(ReadOnlySpan<int> parents)
    {
        ThrowIfDisposed();
        ValidateParents(parents);
        using Use use = new(this);
        MustafarCache fork = new(parents.Length, NumKvHeads, HeadDim, DType, Device, Options, family: this);
        try
        {
            fork.Continue(this, parents);
            return fork;
        }
        catch
        {
            fork.Dispose();
            throw;
        }
    }

    private void Continue(MustafarCache source, ReadOnlySpan<int> parents)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        int most = 0;
        for (int b = 0; b < BatchSize; b++)
        {
            _tailKeys[b].copy_(source._tailKeys[parents[b]]);
            _tailValues[b].copy_(source._tailValues[parents[b]]);
            most = Math.Max(most, source._pages.Count(parents[b]));
        }

        _sinks?.Continue(source._sinks!, parents);
        _pages.Reserve(most);
        for (int b = 0; b < BatchSize; b++)
        {
            int parent = parents[b];
            _pages.Restart(b, source._pages.Released(parent));
            foreach (int page in source._pages.Pages(parent))
            {
                _pool.Share(page);
                _pages.Add(b, page);
            }

            _state.Set(b, source._state.Lengths[parent], source._state.Compressed[parent]);
        }

        _pages.Upload();
        _state.Upload();
    }
}
