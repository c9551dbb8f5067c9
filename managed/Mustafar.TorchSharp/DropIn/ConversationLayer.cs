using System.Runtime.CompilerServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>One attention layer's part of one conversation: the compressed cache, and how the model counts its tokens.</summary>
internal sealed class ConversationLayer : IDisposable
{
    private static readonly Scalar NaN = double.NaN;
    private static readonly ConditionalWeakTable<Tensor, object> LengthTensors = new();

    private Tensor? _element;
    private Tensor? _lengthOnly;
    private long _weight;

    private readonly object _gate = new();

    /// <summary>Takes its weight off the garbage collector.</summary>
    ~ConversationLayer() => Weigh(0);

    /// <summary>The compressed tokens; null before the first.</summary>
    internal MustafarCache? Cache { get; private set; }

    /// <summary>Number of sequences; 0 before the first token.</summary>
    internal int BatchSize => Padding.Length;

    /// <summary>What the cache occupies; safe from any thread.</summary>
    internal KeyValueCacheMemory Memory
    {
        get
        {
            lock (_gate)
            {
                return Cache?.Memory ?? default;
            }
        }
    }

    /// <summary>Tokens that the model counts, padding included.</summary>
    internal int Length { get; set; }

    /// <summary>How many of each sequence's first tokens are padding, which is not cached.</summary>
    internal int[] Padding { get; private set; } = [];

    /// <summary>Whether a tensor was made by <see cref="LengthOnly"/>, and so holds no keys or values.</summary>
    internal static bool IsLengthOnly(Tensor tensor) => LengthTensors.TryGetValue(tensor, out _);

    /// <summary>Whether the model disposed the tensor that <see cref="LengthOnly"/> made, as it disposes its own cache.</summary>
    internal bool IsAbandoned => _lengthOnly is { IsInvalid: true };

    /// <summary>
    /// Tells the garbage collector how much memory there is to free here. A model's own cache is a small object to it, so that else
    /// conversations that nobody disposes, as pipelines leave them, would wait for some other need for a collection.
    /// </summary>
    internal void Weigh() => Weigh(Memory.TotalBytes);

    /// <summary>Begins anew with an empty cache.</summary>
    internal void Restart(AttentionStep step, MustafarOptions options)
    {
        long[] shape = step.Keys.shape;
        if (step.Keys.dtype is not (ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
        {
            throw new NotSupportedException(
                $"The model computes its keys in {step.Keys.dtype}; a compressed cache holds Float32, Float16 or BFloat16.");
        }

        MustafarCache cache = new(
            checked((int)shape[0]), checked((int)shape[1]), checked((int)shape[3]), step.Keys.dtype, step.Keys.device, options);
        lock (_gate)
        {
            Cache?.Dispose();
            Cache = cache;
        }

        Length = 0;
        Padding = new int[shape[0]];
    }

    /// <summary>Notes how many of each sequence's first tokens are padding.</summary>
    internal void Pad(int[] padding) => Padding = padding;

    /// <summary>See <see cref="AttentionResult.LengthOnly"/>.</summary>
    internal Tensor LengthOnly(long[] shape, ScalarType dtype, Device device)
    {
        using IDisposable mode = inference_mode(false);
        using DisposeScope scope = NewDisposeScope();
        if (_element is null || _element.dtype != dtype || _element.device_type != device.type || _element.device_index != device.index)
        {
            _element?.Dispose();
            _element = full([1], NaN, dtype: dtype, device: device).DetachFromDisposeScope();
        }

        Tensor made = _element.expand(shape).DetachFromDisposeScope();
        LengthTensors.Add(made, made);
        Tensor? before = _lengthOnly;
        _lengthOnly = made;
        Retire(before);
        return made;
    }

    public void Dispose()
    {
        lock (_gate)
        {
            Cache?.Dispose();
            Cache = null;
        }

        Length = 0;
        // Left in the model's own cache, it would be taken for keys and values; without its native tensor, it fails where it is used.
        Retire(_lengthOnly);
        _lengthOnly = null;
        _element?.Dispose();
        _element = null;
        Weigh(0);
        GC.SuppressFinalize(this);
    }

    private void Weigh(long bytes)
    {
        if (bytes > _weight)
        {
            GC.AddMemoryPressure(bytes - _weight);
        }
        else if (bytes < _weight)
        {
            GC.RemoveMemoryPressure(_weight - bytes);
        }

        _weight = bytes;
    }

    // Not freed before the next collection: another thread may be asking it for its shape.
    private static void Retire(Tensor? tensor)
    {
        if (tensor is { IsInvalid: false })
        {
            Tensor.UnsafeCreateTensor(tensor.DecoupleFromNativeHandle()).DetachFromDisposeScope();
        }
    }
}
