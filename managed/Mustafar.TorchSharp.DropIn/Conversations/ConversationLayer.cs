using System.Runtime.CompilerServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>The model's count of one attention layer's tokens of one conversation, and what replaces its keys and values.</summary>
internal sealed class ConversationLayer : IDisposable
{
    private static readonly Scalar NaN = double.NaN;
    private static readonly ConditionalWeakTable<Tensor, object> LengthTensors = new();

    private readonly List<Action<int>> _undo = [];
    private Tensor? _element;
    private Tensor? _lengthOnly;

    /// <summary>Number of sequences; 0 before the first token.</summary>
    internal int BatchSize { get; private set; }

    /// <summary>Number of tokens that the model counts, including padding.</summary>
    internal int Length { get; private set; }

    /// <summary>Whether a tensor was made by <see cref="LengthOnly"/>, and so holds no keys or values.</summary>
    internal static bool IsLengthOnly(Tensor tensor) => LengthTensors.TryGetValue(tensor, out _);

    /// <summary>Whether the model disposed the tensor that <see cref="LengthOnly"/> made, as it disposes its own cache.</summary>
    internal bool IsAbandoned => _lengthOnly is { IsInvalid: true };

    /// <summary>Records that the layer has done a step.</summary>
    internal void Attended(int length, int batchSize)
    {
        (Length, BatchSize) = (length, batchSize);
        _undo.Clear();
    }

    /// <summary>See <see cref="AttentionResult.OnUndo"/>.</summary>
    internal void OnUndo(Action<int> restore) => _undo.Add(restore);

    /// <summary>Returns to the state before a step that is undone.</summary>
    internal void Undo(int length)
    {
        using DisposeScope scope = NewDisposeScope();
        (Length, BatchSize) = (length, length == 0 ? 0 : BatchSize);
        _undo.ForEach(restore => restore(length));
        _undo.Clear();
    }

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
        (Length, BatchSize) = (0, 0);
        _undo.Clear();
        // In the model's own cache it would be taken for keys and values; without its native tensor, it fails where it is used.
        Retire(_lengthOnly);
        _lengthOnly = null;
        _element?.Dispose();
        _element = null;
    }

    // Freed at the next collection at the earliest: another thread may be reading its shape.
    private static void Retire(Tensor? tensor)
    {
        if (tensor is { IsInvalid: false })
        {
            Tensor.UnsafeCreateTensor(tensor.DecoupleFromNativeHandle()).DetachFromDisposeScope();
        }
    }
}
