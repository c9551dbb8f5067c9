using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Runs decode steps, of one new token for each of some sequences. On CUDA a step is captured into a graph and launched as one
/// from then on, so that the host queues one piece of work instead of hundreds.</summary>
/// <remarks>
/// <para>
/// A graph repeats the work of its capture at the same addresses. The function that is given computes a whole step: it attends in
/// every layer of the <see cref="CacheStep"/>, and whatever changes from step to step (the tokens, <see cref="CacheStep.DevicePositions"/>,
/// a <see cref="SamplingState"/>) it reads from tensors that stay where they are and that are written before <see cref="Run"/>. It
/// must not read numbers back to the host. What it leaves is read from tensors that it writes in place, such as
/// <see cref="CacheStep.Buffers"/>: other tensors that it makes are gone after the step, or belong to the graph.
/// </para>
/// <para>
/// The first step of a kind runs as it is, the second is captured. It is another kind if the number of sequences differs, or the cache
/// has grown, or its sequences have by 256 tokens or more. With <see cref="CacheLimits"/> the cache does not move. On the CPU, and
/// where a step cannot be captured (then <see cref="WhyEager"/> says why), every step runs as it is, with the same results.
/// </para>
/// <para>
/// After anything that the function reads from has moved, call <see cref="Forget"/>. Of a model's weights <see cref="Run"/> sees by itself that
/// they have. It is used by one thread at a time.
/// </para>
/// </remarks>
/// <example>
/// <code>
/// using DecodeGraph decode = new(cache, step =&gt;
/// {
///     for (int layer = 0; layer &lt; cache.NumLayers; layer++)
///     {
///         output.copy_(step.Attend(layer, query, keys, values));
///     }
/// });
///
/// // Each call adds a token to the sequence; what the function reads is written before it.
/// decode.Run([sequence]);
/// decode.Run([sequence]);
/// </code>
/// </example>
public sealed class DecodeGraph : IDisposable
{
    // Of each number of sequences that there are in turn, and some of shorter sequences.
    private const int MostGraphs = 32;

    // Large enough for the memory from which torch serves more than a megabyte.
    private const long AnchorBytes = 2 << 20;

    private readonly ModelKeyValueCache _cache;
    private readonly Action<CacheStep> _step;
    private readonly nn.Module? _model;
    private readonly Dictionary<StepLayout, Captured> _graphs = [];
    private readonly HashSet<StepLayout> _seen = []; // of steps that ran as they are
    private CapturedWeights? _weights; // since the first capture
    private CaptureStream? _stream;
    private bool _disposed;

    /// <summary>Makes a runner of steps.</summary>
    /// <param name="cache">The cache that they are steps of.</param>
    /// <param name="step">Computes a step.</param>
    /// <param name="capture">Whether steps may be captured; false runs each as it is.</param>
    /// <param name="model">The model of whose weights the function reads, so that captured steps are refused once these have moved; null if there
    /// is none.</param>
    public DecodeGraph(ModelKeyValueCache cache, Action<CacheStep> step, bool capture = true, nn.Module? model = null)
    {
        ArgumentNullException.ThrowIfNull(cache);
        ArgumentNullException.ThrowIfNull(step);
        (_cache, _step, _model) = (cache, step, model);
        WhyEager = !capture ? "Capturing was not asked for."
            : cache.Device.type != DeviceType.CUDA ? "Graphs are CUDA's."
            : !TorchShim.HasStreams ? "This libtorch does not let a stream be chosen."
            : null;
    }

    /// <summary>Why no step is captured; null if steps are.</summary>
    public string? WhyEager { get; private set; }

    /// <summary>Steps that were captured, not counting their launches.</summary>
    public int Captures { get; private set; }

    /// <summary>Steps that were launched as graphs.</summary>
    public long Launches { get; private set; }

    /// <summary>Adds a token to sequences.</summary>
    /// <param name="sequences">The sequences, each once, in the order of the rows.</param>
    /// <param name="counts">For each sequence 1, or 0 for one that gets no token and whose row is meaningless; all 1 if empty.</param>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="ArgumentException">There is no sequence, one occurs twice, or a count is out of range.</exception>
    /// <exception cref="CacheBudgetException">There is less memory left than the step needs.</exception>
    /// <exception cref="CacheLimitException">A sequence would be longer than <see cref="CacheLimits.MaxLength"/>.</exception>
    /// <exception cref="MovedWeightsException">Steps were captured, and parameters or buffers of the model have moved since.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, the function did not attend in every layer, or another thread is
    /// using the cache.</exception>
    /// <exception cref="ObjectDisposedException">This object or the cache was disposed.</exception>
    public void Run(ReadOnlySpan<int> sequences, ReadOnlySpan<int> counts = default)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        if (_weights?.FindMoved() is string moved)
        {
            throw new MovedWeightsException(
                $"Expected the model's weights where they were when steps were captured, but {moved} has moved. " +
                $"Call {nameof(Forget)}, so that steps are captured anew.");
        }

        using IDisposable noGrad = no_grad();
        using CacheStep step = _cache.BeginStep(sequences, 1, counts);
        StepLayout? layout = WhyEager is null ? _cache.LayoutOf(step) : null;
        if (layout is not StepLayout kind || !Launch(step, kind))
        {
            using DisposeScope scope = NewDisposeScope();
            _step(step);
            // What a first step needs may have made buffers that a graph of the same kind finds.
            if (WhyEager is null && _cache.LayoutOf(step) is StepLayout seen)
            {
                _ = _seen.Add(seen);
            }
        }

        step.Commit();
    }

    /// <summary>Drops what was captured. Needed when tensors that the function uses have moved, or weights of the model.</summary>
    public void Forget()
    {
        foreach (Captured graph in _graphs.Values)
        {
            graph.Dispose();
        }

        _graphs.Clear();
        _seen.Clear();
        _weights = null;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (!_disposed)
        {
            _disposed = true;
            Forget();
            _stream?.Dispose();
        }
    }

    // Whether the step was done by a graph.
    private bool Launch(CacheStep step, StepLayout kind)
    {
        if (!_graphs.TryGetValue(kind, out Captured? graph))
        {
            if (!_seen.Contains(kind) || Capture(step) is not Captured captured)
            {
                return false;
            }

            if (_graphs.Count == MostGraphs)
            {
                Forget();
            }

            _graphs.Add(kind, graph = captured);
            _weights ??= _model is null ? null : new CapturedWeights(_model);
        }

        graph.Launch();
        Launches++;
        step.EnterAll();
        return true;
    }

    private Captured? Capture(CacheStep step)
    {
        _stream ??= new CaptureStream(_cache.Device);
        DisposeScope scope = NewDisposeScope();
        try
        {
            nint graph = _stream.Capture(() =>
            {
                // What operators allocate and free within themselves comes from the memory beside this, which torch then does not give back to
                // the device.
                _ = empty([AnchorBytes], dtype: ScalarType.Byte, device: _cache.Device);
                _step(step);
            });
            // The graph goes on writing to what was allocated while it was captured.
            IDisposable[] kept = [.. scope.DisposablesView];
            scope.Detach(kept);
            Captures++;
            return new Captured(graph, kept, _cache.Device);
        }
        catch (Exception error) when (error is not (OutOfMemoryException or InsufficientMemoryException))
        {
            // If the function is at fault it fails again, and says so then.
            WhyEager = $"A step could not be captured: {error.Message}";
            return null;
        }
        finally
        {
            scope.Dispose();
            step.Restart();
        }
    }

    private sealed class Captured(nint graph, IDisposable[] kept, torch.Device device) : IDisposable
    {
        internal void Launch() => CaptureStream.Launch(graph, device);

        public void Dispose()
        {
            CaptureStream.Destroy(graph, device);
            Array.ForEach(kept, tensor => tensor.Dispose());
        }
    }
}
