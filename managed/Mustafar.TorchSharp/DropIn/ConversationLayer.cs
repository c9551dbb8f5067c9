using System.Runtime.CompilerServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>One attention layer's part of one conversation: the compressed cache, and how the model counts its tokens.</summary>
internal sealed class ConversationLayer : IDisposable
{
    private static readonly Scalar NaN = double.NaN;
    private static readonly ConditionalWeakTable<Tensor, object> LengthTensors = new();

    private Tensor? _lengthOnly;

    /// <summary>The compressed tokens; null before the first.</summary>
    internal MustafarCache? Cache { get; private set; }

    /// <summary>Tokens that the model counts, padding included.</summary>
    internal int Length { get; set; }

    /// <summary>How many of each sequence's first tokens are padding, which is not cached.</summary>
    internal int[] Padding { get; private set; } = [];

    /// <summary>Whether a tensor was made by <see cref="LengthOnly"/>, and so holds no keys or values.</summary>
    internal static bool IsLengthOnly(Tensor tensor) => LengthTensors.TryGetValue(tensor, out _);

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
        Cache?.Dispose();
        Cache = cache;
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
        Tensor made = full([1], NaN, dtype: dtype, device: device).expand(shape).DetachFromDisposeScope();
        LengthTensors.Add(made, made);
        _lengthOnly?.Dispose();
        _lengthOnly = made;
        return made;
    }

    public void Dispose()
    {
        Cache?.Dispose();
        Cache = null;
        Length = 0;
        // Left in the model's own cache, it would be taken for keys and values; disposed, it fails where it is used.
        _lengthOnly?.Dispose();
        _lengthOnly = null;
    }
}
