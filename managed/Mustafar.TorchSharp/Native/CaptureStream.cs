using System.Collections.Concurrent;
using TorchSharp;

namespace Mustafar.Native;

/// <summary>A stream of a CUDA device that is only used to capture graphs.</summary>
/// <remarks>
/// During a capture, torch's operators allocate from memory that torch keeps for this stream, and what they free returns to it. The next
/// capture may reuse it, which is right as long as launches follow one another, but nobody else may. Streams are reused, since libraries
/// keep workspaces for each stream that they have seen.
/// </remarks>
internal sealed unsafe class CaptureStream : IDisposable
{
    private static readonly ConcurrentDictionary<int, ConcurrentBag<nint>> Free = new();

    private readonly torch.Device _device;
    private nint _stream;

    internal CaptureStream(torch.Device device)
    {
        _device = device;
        if (!Free.GetOrAdd(device.index, _ => []).TryTake(out _stream))
        {
            NativeContext context = TensorAccess.Context(device);
            void* stream;
            NativeCall.Check(NativeMethods.StreamCreate(&context, &stream));
            _stream = (nint)stream;
        }
    }

    /// <summary>Captures what an action queues on the current stream of this thread.</summary>
    /// <returns>A graph for <see cref="Launch"/>.</returns>
    internal nint Capture(Action action)
    {
        NativeContext context = TensorAccess.Context(_device);
        context.Stream = (void*)_stream;
        using IDisposable guard = TorchShim.UseStream(context.Stream, _device.index);
        NativeCall.Check(NativeMethods.CaptureBegin(&context));
        try
        {
            action();
        }
        catch
        {
            // Whatever went wrong with the capture itself, the action's own error explains it better.
            _ = NativeMethods.CaptureEnd(&context, null);
            throw;
        }

        void* graph;
        NativeCall.Check(NativeMethods.CaptureEnd(&context, &graph));
        return (nint)graph;
    }

    /// <summary>Queues a graph on the current stream of this thread.</summary>
    internal static void Launch(nint graph, torch.Device device)
    {
        NativeContext context = TensorAccess.Context(device);
        NativeCall.Check(NativeMethods.GraphLaunch(&context, (void*)graph));
    }

    /// <summary>Destroys a graph.</summary>
    internal static void Destroy(nint graph, torch.Device device)
    {
        NativeContext context = TensorAccess.Context(device);
        _ = NativeMethods.GraphDestroy(&context, (void*)graph);
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _stream, 0) is nint stream and not 0)
        {
            Free[_device.index].Add(stream);
        }
    }
}
