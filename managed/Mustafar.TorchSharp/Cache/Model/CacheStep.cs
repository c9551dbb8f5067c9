using static TorchSharp.torch;

namespace Mustafar;

/// <summary>A step of a <see cref="ModelKeyValueCache"/>: new tokens of some sequences, in all layers or in none.</summary>
/// <remarks>
/// The step is planned once, before the first layer. Until <see cref="Commit"/> the sequences do not change. Disposing a step that was not
/// committed, because a layer failed or for any other reason, rolls back all layers. Like its cache, a step may be used by one thread at a
/// time.
/// </remarks>
public sealed class CacheStep : IDisposable
{
    private readonly bool[] _attended;
    private int _current = -1; // the layer that attends, or that failed

    internal CacheStep(ModelKeyValueCache cache, int[] sequences, int tokens, int[] counts, int[] positions)
    {
        Cache = cache;
        _attended = new bool[cache.NumLayers];
        Tokens = tokens;
        Sequences = Array.AsReadOnly(sequences);
        Counts = Array.AsReadOnly(counts);
        Positions = Array.AsReadOnly(positions);
    }

    /// <summary>The cache that the step belongs to.</summary>
    public ModelKeyValueCache Cache { get; }

    /// <summary>The sequence of each row.</summary>
    public IReadOnlyList<int> Sequences { get; }

    /// <summary>New tokens n in each row, padding included.</summary>
    public int Tokens { get; }

    /// <summary>How many of the n tokens belong to each sequence.</summary>
    public IReadOnlyList<int> Counts { get; }

    /// <summary>Position of each row's first new token; the others follow consecutively.</summary>
    public IReadOnlyList<int> Positions { get; }

    /// <summary>Tensors that the layers of all steps of the cache share.</summary>
    public StepBuffers Buffers => Cache.Buffers;

    /// <summary>The position of each new token, on the cache's device, Int32 [batch, n], as <see cref="MustafarOps.Rotate"/> reads it. All
    /// steps of one token have it at the same address. In the current dispose scope.</summary>
    /// <exception cref="InvalidOperationException">The step has ended, or another thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public Tensor DevicePositions => Cache.DevicePositions(this);

    /// <summary>Adds the new tokens to a layer and returns their attention: each sees all earlier tokens of its sequence and itself.</summary>
    /// <param name="layer">The layer, from 0; each attends once in a step, in any order.</param>
    /// <param name="query">Queries [batch, num_heads, n, head_dim]; head h reads KV head h / (num_heads / num_kv_heads). Positions must
    /// already be encoded, in the keys as well.</param>
    /// <param name="keys">Keys of the new tokens [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="values">Values of the new tokens [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="scale">Factor of the scores before softmax; 1/√head_dim if null.</param>
    /// <returns>Output [batch, num_heads, n, head_dim] in the type of the queries; zero at padding.</returns>
    /// <exception cref="ArgumentException">A type, device or shape doesn't fit; the step can continue with the same layer.</exception>
    /// <exception cref="InvalidOperationException">The layer has already attended, another one failed, the step has ended, or another
    /// thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public Tensor Attend(int layer, Tensor query, Tensor keys, Tensor values, double? scale = null)
    {
        Tensor output = Cache.Attend(this, layer, query, keys, values, scale);
        _current = -1;
        return output;
    }

    /// <summary>The same for heads whose positions are not encoded yet: <see cref="MustafarOps.Rotate"/> of queries and keys by
    /// <see cref="DevicePositions"/>, then <see cref="Attend(int, Tensor, Tensor, Tensor, double?)"/>. On CUDA a step of one token mostly does
    /// both the rotation and the appending in one launch.</summary>
    /// <param name="layer">The layer, from 0; each attends once in a step, in any order.</param>
    /// <param name="heads">Queries, keys and values as the projections leave them, in the type of the cache. The queries are rotated in place;
    /// what the keys hold afterwards is unspecified.</param>
    /// <param name="angles">The rotation angles.</param>
    /// <param name="norms">RMSNorm of each head before the rotation; none if null.</param>
    /// <param name="scale">Factor of the scores before softmax; 1/√head_dim if null.</param>
    /// <returns>Output [batch, num_heads, n, head_dim] in the type of the queries; zero at padding.</returns>
    /// <exception cref="ArgumentException">A type, device, layout or shape doesn't fit, there are no values, or on the CPU a position is
    /// outside the tables. Only in the last case can the step not continue.</exception>
    /// <exception cref="InvalidOperationException">The layer has already attended, another one failed, the step has ended, or another
    /// thread is using the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public Tensor Attend(int layer, RotaryHeads heads, RotaryAngles angles, HeadNorms? norms = null, double? scale = null)
    {
        ArgumentNullException.ThrowIfNull(heads);
        if (heads.Value is null)
        {
            throw new ArgumentException("Expected values, but got null.", nameof(heads));
        }

        Tensor output = Cache.Attend(this, layer, heads, angles, norms, scale);
        _current = -1;
        return output;
    }

    /// <summary>Ends the step: the new tokens join their sequences, and tokens that <see cref="MustafarOptions.Eviction"/> gives up are
    /// removed.</summary>
    /// <exception cref="CacheBudgetException">The step is committed, but a sequence keeps all of its tokens for now: there are not enough
    /// pages for the remaining tokens in addition to all of the present ones.</exception>
    /// <exception cref="InvalidOperationException">A layer has not attended or has failed, the step has ended, or another thread is using
    /// the cache.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    public void Commit() => Cache.Commit(this);

    /// <summary>Rolls the step back, unless it was committed.</summary>
    /// <exception cref="InvalidOperationException">Another thread is using the cache.</exception>
    public void Dispose() => Cache.Rollback(this);

    /// <summary>Records that a layer attends. All arguments are known to be valid.</summary>
    /// <returns>Whether it is the step's first.</returns>
    internal bool Enter(int layer)
    {
        ThrowIfFailed();
        if (_attended[layer])
        {
            throw new InvalidOperationException($"Layer {layer} has already attended in this step.");
        }

        bool isFirst = !Array.Exists(_attended, attended => attended);
        (_attended[layer], _current) = (true, layer);
        return isFirst;
    }

    /// <summary>Records that all layers have attended, in a graph.</summary>
    internal void EnterAll()
    {
        ThrowIfFailed();
        Array.Fill(_attended, true);
    }

    /// <summary>Records that nothing has been done yet: the work went into a graph.</summary>
    internal void Restart()
    {
        Array.Fill(_attended, false);
        _current = -1;
    }

    /// <summary>Throws unless all layers have attended.</summary>
    internal void ThrowIfIncomplete()
    {
        ThrowIfFailed();
        if (Array.IndexOf(_attended, false) is int missing and >= 0)
        {
            throw new InvalidOperationException($"Expected all {_attended.Length} layers to attend before the commit, but layer {missing} has not.");
        }
    }

    private void ThrowIfFailed()
    {
        if (_current >= 0)
        {
            throw new InvalidOperationException($"Layer {_current} failed in this step; dispose the step and begin another.");
        }
    }
}
