using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Runs decode steps, of one new token for each of some sequences. On CUDA a step is captured into a graph, so that from then on
/// the host launches one piece of work instead of hundreds.</summary>
/// <remarks>
/// <para>
/// A graph repeats the captured work at the same addresses. The function that you pass computes a whole step: it attends in every layer of
/// the <see cref="CacheStep"/>. Whatever changes from step to step (the tokens, <see cref="CacheStep.DevicePositions"/>, a
/// <see cref="SamplingState"/>) it must read from tensors that stay in place and are written before <see cref="Run"/>. It must not read
/// numbers back to the host. It leaves its results in tensors that it writes in place, such as <see cref="CacheStep.Buffers"/>: other
/// tensors that it makes are gone after the step, or belong to the graph.
/// </para>
/// <para>
/// The first step of a kind runs eagerly, the second is captured. The kind changes with the number of sequences, when the cache grows, and
/// when the sequences grow by 256 tokens or more. With <see cref="CacheLimits"/> the cache does not move. On the CPU, and where a step
/// cannot be captured (<see cref="WhyEager"/> has the reason), every step runs eagerly, with the same results.
/// </para>
/// <para>
/// If anything that the function reads has moved, call <see cref="Forget"/>. <see cref="Run"/> detects moved weights of the model by
/// itself. Only one thread at a time may use this object.
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
    // Enough for each number of sequences that occurs, and for some steps of shorter sequences.
    private const int MostGraphs = 32;

    // Large enough to come from the memory that torch uses for more than a megabyte.
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
    /// <param name="cache">The cache of the steps.</param>
    /// <param name="step">Computes a step.</param>
    /// <param name="capture">Whether steps may be captured; false runs each one eagerly.</param>
    /// <param name="model">The model whose weights the function reads, so that captured steps are refused once the weights have moved; null
    /// if there is none.</param>
    public DecodeGraph(ModelKeyValueCache cache, Action<CacheStep> step, bool capture = true, nn.Module? model = null)
    {
        ArgumentNullException.ThrowIfNull(cache);
        ArgumentNullException.ThrowIfNull(step);
        (_cache, _step, _model) = (cache, step, model);
        WhyEager = !capture ? "Capturing is turned off."
            : cache.Device.type != DeviceType.CUDA ? "Graphs need CUDA."
            : !TorchShim.HasStreams ? "This libtorch has no way to choose a stream."
            : null;
    }

    /// <summary>Why no step is captured; null if steps are.</summary>
    public string? WhyEager { get; private set; }

    /// <summary>Steps that were captured, not counting their launches.</summary>
    public int Captures { get; private set; }

    /// <summary>Steps that were launched as graphs.</summary>
    public long Launches { get; private set; }

    /// <summary>Adds a token to each of some sequences.</summary>
    /// <param name="sequences">The sequences, each once, in the order of the rows.</param>
    /// <param name="counts">For each sequence 1, or 0 for one that gets no token and whose row has no meaning; all 1 if empty.</param>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="ArgumentException">There is no sequence, one occurs twice, or a count is out of range.</exception>
    /// <exception cref="CacheBudgetException">The step needs more memory than is left.</exception>
    /// <exception cref="CacheLimitException">A sequence would be longer than <see cref="CacheLimits.MaxLength"/>.</exception>
    /// <exception cref="MovedWeightsException">Parameters or buffers of the model have moved since steps were captured.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, the function did not attend in every layer, or another thread is
    /// using the cache.</exception>
    /// <exception cref="ObjectDisposedException">This object or the cache was disposed.</exception>
    public void Run(ReadOnlySpan<int> sequences, ReadOnlySpan<int> counts = default)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        if (_weights?.FindMoved() is string moved)
        {
            throw new MovedWeightsException(
                $"Expected the model's weights at the addresses they had when steps were captured, but {moved} has moved. " +
                $"Call {nameof(Forget)} to capture steps again.");
        }

        using IDisposable noGrad = no_grad();
        using CacheStep step = _cache.BeginStep(sequences, 1, counts);
        StepLayout? layout = WhyEager is null ? _cache.LayoutOf(step) : null;
        if (layout is not StepLayout kind || !Launch(step, kind))
        {
            using DisposeScope scope = NewDisposeScope();
            _step(step);
            // A first step may have made buffers that a graph of the same kind needs.
            if (WhyEager is null && _cache.LayoutOf(step) is StepLayout seen)
            {
                _ = _seen.Add(seen);
            }
        }

        step.Commit();
    }

    /// <summary>Drops all captured steps. Needed when tensors that the function uses, or weights of the model, have moved.</summary>
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

    // Whether a graph ran the step.
    private bool Launch(CacheStep step, StepLayout kind)
    {
        if (!_graphs.TryGetValue(kind, out Captured? graph))
        {
            if (!_seen.Contains(kind) || Capture(step) is not Captured captured)
            {
                return false;
            }

            DropStale(kind);
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

    // Drops the graphs of addresses that the cache has left.
    private void DropStale(StepLayout now)
    {
        foreach ((StepLayout kind, Captured graph) in _graphs)
        {
            if (kind != now.WithRowsOf(kind))
            {
                graph.Dispose();
                _graphs.Remove(kind);
            }
        }

        _seen.RemoveWhere(kind => kind != now.WithRowsOf(kind));
    }

    private Captured? Capture(CacheStep step)
    {
        _stream ??= new CaptureStream(_cache.Device);
        DisposeScope scope = NewDisposeScope();
        try
        {
            nint graph = _stream.Capture(() =>
            {
                // Memory that operators allocate and free internally comes from the rest of this block, which torch then does not return to
                // the device.
                _ = empty([AnchorBytes], dtype: ScalarType.Byte, device: _cache.Device);
                _step(step);
            });
            // The graph keeps writing to what was allocated during its capture.
            IDisposable[] kept = [.. scope.DisposablesView];
            scope.Detach(kept);
            Captures++;
            return new Captured(graph, kept, _cache.Device);
        }
        catch (Exception error) when (error is not (OutOfMemoryException or InsufficientMemoryException))
        {
            // If the function is at fault, it fails again in the eager run and reports it there.
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
