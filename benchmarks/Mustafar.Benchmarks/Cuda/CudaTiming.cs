using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Cuda;

/// <summary>Times work on a GPU by the GPU's clock: medians in microseconds.</summary>
internal sealed class CudaTiming : IDisposable
{
    /// <summary>The buffers a graph goes through are larger than this in total, so that none is still in the cache.</summary>
    internal const double RotatedBytes = 250e6;

    private const int FewestCallsOfGraph = 32; // so that starting the graph does not show
    private const int Replays = 21;
    private const int ColdCalls = 25;
    private const int FillsBefore = 8; // of about 60 µs each

    private readonly nint _stream = CudaRuntime.CreateStream();
    private readonly nint _guard;
    private readonly nint _start = CudaRuntime.CreateEvent();
    private readonly nint _end = CudaRuntime.CreateEvent();
    private readonly Tensor _flush;
    private readonly Scalar _zero = 0;

    internal CudaTiming(torch.Device device)
    {
        _guard = CudaRuntime.EnterStream(_stream, Math.Max(0, device.index));
        _flush = empty(256 << 20, dtype: ScalarType.Byte, device: device).DetachFromDisposeScope();
    }

    /// <summary>How many copies of something of so many bytes to rotate over.</summary>
    internal static int Copies(double bytes) => (int)Math.Max(1, Math.Ceiling(RotatedBytes / bytes));

    /// <summary>Time of one call, from replays of a CUDA graph that makes all of them in turn.</summary>
    internal double Graph(IReadOnlyList<Func<Tensor>> calls)
    {
        int rounds = (FewestCallsOfGraph + calls.Count - 1) / calls.Count;
        using DisposeScope scope = NewDisposeScope();
        foreach (Func<Tensor> call in calls)
        {
            call().Dispose(); // and allocations come from what torch keeps, as they must in a capture
        }

        CudaRuntime.Synchronize(_stream);
        CudaRuntime.BeginCapture(_stream);
        try
        {
            for (int i = 0; i < rounds * calls.Count; i++)
            {
                calls[i % calls.Count]().Dispose();
            }
        }
        catch
        {
            CudaRuntime.AbandonCapture(_stream);
            throw;
        }

        nint graph = CudaRuntime.EndCapture(_stream);
        CudaRuntime.Launch(graph, _stream);
        double time = Median(Replays, () => CudaRuntime.Launch(graph, _stream)) / (rounds * calls.Count);
        CudaRuntime.DestroyGraph(graph);
        return time;
    }

    /// <summary>Time of a single call with nothing in the cache.</summary>
    internal double Cold(Func<Tensor> call, Action? before = null)
    {
        using DisposeScope scope = NewDisposeScope();
        call().Dispose();
        return Median(ColdCalls, () => call().Dispose(), () =>
        {
            before?.Invoke();
            Occupy();
        });
    }

    /// <summary>Time of a single call that can't be repeated, with nothing in the cache.</summary>
    internal double Once(Action call) => Median(1, call, Occupy);

    /// <summary>Waits until the GPU has done all work.</summary>
    internal void Wait() => CudaRuntime.Synchronize(_stream);

    /// <summary>Bytes per second, read and written, of a large copy.</summary>
    internal double CopyBandwidth()
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor source = zeros(1 << 30, dtype: ScalarType.Byte, device: _flush.device);
        Tensor target = empty_like(source);
        return 2 * source.numel() / (Median(15, () => target.copy_(source)) * 1e-6);
    }

    public void Dispose()
    {
        CudaRuntime.Synchronize(_stream);
        CudaRuntime.LeaveStream(_guard);
        _flush.Dispose();
    }

    // Clears the cache, and keeps the GPU busy until the host has queued what is timed.
    private void Occupy()
    {
        for (int i = 0; i < FillsBefore; i++)
        {
            _flush.fill_(_zero);
        }
    }

    private double Median(int count, Action call, Action? before = null)
    {
        List<double> times = [];
        for (int i = 0; i < count; i++)
        {
            before?.Invoke();
            CudaRuntime.Record(_start, _stream);
            call();
            CudaRuntime.Record(_end, _stream);
            times.Add(CudaRuntime.Elapsed(_start, _end));
        }

        times.Sort();
        return times[times.Count / 2];
    }
}
