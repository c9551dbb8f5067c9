using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Tensors for intermediate results of a step, which each layer may overwrite.</summary>
/// <remarks>
/// A tensor of one name and type is at the same address in every step until a larger one is requested, so that a
/// <see cref="DecodeGraph"/> can repeat a step that uses it. The tensors belong to the cache, and to the thread that is using it.
/// </remarks>
public sealed class StepBuffers
{
    private readonly Device _device;
    private readonly Dictionary<(string, ScalarType), Tensor> _memory = [];

    internal StepBuffers(Device device) => _device = device;

    /// <summary>Incremented when a tensor moves.</summary>
    internal int Version { get; private set; }

    /// <summary>A contiguous tensor in the current dispose scope. Its content is undefined, or what was written under that name
    /// before.</summary>
    /// <param name="name">Its purpose: tensors of one name and type share their memory.</param>
    /// <param name="dtype">Its type.</param>
    /// <param name="shape">Its shape.</param>
    /// <exception cref="ArgumentOutOfRangeException">A size is negative.</exception>
    public Tensor Get(string name, ScalarType dtype, params ReadOnlySpan<long> shape)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        long count = 1;
        foreach (long size in shape)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(size, nameof(shape));
            count = checked(count * size);
        }

        if (!_memory.TryGetValue((name, dtype), out Tensor? memory) || memory.numel() < count)
        {
            // Dropped first, since making the larger one may fail.
            memory?.Dispose();
            _memory.Remove((name, dtype));
            using IDisposable mode = inference_mode(false);
            memory = empty([count], dtype: dtype, device: _device).DetachFromDisposeScope();
            _memory.Add((name, dtype), memory);
            Version++;
        }

        return memory.narrow(0, 0, count).view(shape.ToArray());
    }

    internal void Dispose()
    {
        foreach (Tensor memory in _memory.Values)
        {
            memory.Dispose();
        }

        _memory.Clear();
    }
}
