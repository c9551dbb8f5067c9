using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>The workspace of attention, which the layers of a cache use one after the other.</summary>
internal sealed unsafe class StepWorkspace(torch.Device device) : IDisposable
{
    private Tensor? _memory;

    /// <summary>Its address; 0 before the first call that needs it.</summary>
    internal nint Address => _memory is null ? 0 : (nint)TensorAccess.Pointer(_memory);

    /// <summary>Gives a call the workspace that it needs.</summary>
    internal void Provide(in NativeContext context, ref NativeAttention attention)
    {
        long bytes;
        fixed (NativeContext* where = &context)
        fixed (NativeAttention* call = &attention)
        {
            NativeCall.Check(NativeMethods.AttentionWorkspace(where, call, &bytes));
        }

        if (_memory is null || _memory.numel() < bytes)
        {
            // Dropped first, since making the larger one may fail.
            Dispose();
            using IDisposable mode = inference_mode(false);
            _memory = TensorAccess.Workspace(bytes, device).DetachFromDisposeScope();
        }

        attention.Workspace = TensorAccess.Pointer(_memory);
        attention.WorkspaceBytes = bytes;
    }

    public void Dispose()
    {
        _memory?.Dispose();
        _memory = null;
    }
}
