using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// Layers of a conversation that share one cache. A step is planned when the first of them is called, and belongs to the conversation
/// once the last one has been.
/// </summary>
internal sealed class LayerGroup : IDisposable
{
    private readonly Dictionary<AttentionLayer, int> _indices = []; // in the cache
    private readonly Dictionary<AttentionLayer, ConversationLayer> _attended = []; // in the step under way
    private readonly MustafarModelCache _cache;
    private readonly int[] _sequences;
    private readonly object _gate = new();
    private int[] _stepPadding = [];
    private (Tensor Left, Tensor Back)? _turns;
    private bool _disposed;
    private long _weight;

    /// <summary>Begins with an empty cache.</summary>
    /// <param name="layers">The layers.</param>
    /// <param name="keys">Keys of one of them [batch, num_kv_heads, n, head_dim].</param>
    /// <param name="options">How they are pruned and stored.</param>
    /// <exception cref="NotSupportedException">A cache does not support such keys.</exception>
    internal LayerGroup(IReadOnlyList<AttentionLayer> layers, Tensor keys, MustafarOptions options)
        : this(layers, keys.size(0), Cache(layers.Count, keys, options))
    {
        Array.ForEach(_sequences, _ => _cache.AddSequence());
    }

    private LayerGroup(IEnumerable<AttentionLayer> layers, long batch, MustafarModelCache cache)
    {
        foreach (AttentionLayer layer in layers)
        {
            _indices.Add(layer, _indices.Count);
        }

        _cache = cache;
        _sequences = [.. Enumerable.Range(0, checked((int)batch))];
        Padding = new int[batch];
    }

    /// <summary>Removes its weight from the garbage collector.</summary>
    ~LayerGroup() => Weigh(0);

    internal IReadOnlyCollection<AttentionLayer> Layers => _indices.Keys;

    internal int BatchSize => _sequences.Length;

    /// <summary>Number of tokens of the steps that all layers have done, as the model counts them, including padding.</summary>
    internal int Length { get; private set; }

    /// <summary>How many of each sequence's first tokens are padding, which is not cached.</summary>
    internal int[] Padding { get; private set; }

    /// <summary>The step that some of the layers have done; null between steps.</summary>
    internal CacheStep? Step { get; private set; }

    /// <summary>Number of tokens before the current step.</summary>
    internal int Start { get; private set; }

    /// <summary>The memory of the cache. Any thread may read it.</summary>
    internal KeyValueCacheMemory Memory
    {
        get
        {
            lock (_gate)
            {
                return _disposed ? default : _cache.Memory;
            }
        }
    }

    internal bool Has(AttentionLayer layer) => _indices.ContainsKey(layer);

    /// <summary>Whether a layer has attended in the current step.</summary>
    internal bool HasAttended(AttentionLayer layer) => _attended.ContainsKey(layer);

    /// <summary>Whether the current step is the one that a layer is called for.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="step">The step that it is called with.</param>
    /// <param name="padding">The padding in its mask.</param>
    internal bool Awaits(AttentionLayer layer, AttentionStep step, ReadOnlySpan<int> padding) =>
        Step is not null && !HasAttended(layer) && step.Start == Start && step.Keys.size(2) == Step.Tokens && step.Keys.size(0) == BatchSize
        && (step.Start > 0 || KeyShape.Of(step.Keys) == new KeyShape(
            _cache.KeyValueShape, _cache.DType, _cache.Device.type, _cache.Device.index))
        && padding.SequenceEqual(_stepPadding);

    /// <summary>Begins a step. Afterwards everything it needs from the cache is there for all layers; if that fails, nothing has
    /// changed.</summary>
    /// <param name="start">Tokens before it.</param>
    /// <param name="tokens">Tokens of each sequence.</param>
    /// <param name="padding">How many of each sequence's tokens are padding: of the new ones if there are none before.</param>
    internal void Begin(int start, int tokens, int[] padding)
    {
        int[] counts = start == 0 && Array.Exists(padding, count => count > 0) ? Array.ConvertAll(padding, count => tokens - count) : [];
        Step = _cache.BeginStep(_sequences, tokens, counts);
        (Start, _stepPadding) = (start, padding);
        if (counts.Length > 0)
        {
            _turns = (TokenTurn.By(padding, tokens, _cache.Device), TokenTurn.By(counts, tokens, _cache.Device));
        }
    }

    /// <summary>A layer's part of the current step.</summary>
    /// <returns>Attention [batch, num_heads, n, head_dim]; zero at padding.</returns>
    internal Tensor Attend(AttentionLayer layer, ConversationLayer part, AttentionStep step)
    {
        Tensor output;
        if (_turns is (Tensor left, Tensor back))
        {
            // The cache has padding on the right: each sequence is rotated left by its padding, and the output back.
            output = TokenTurn.Apply(Step!.Attend(_indices[layer], Turned(step.Query), Turned(step.Keys), Turned(step.Values), step.Scale), back);

            Tensor Turned(Tensor tensor) => TokenTurn.Apply(tensor, left);
        }
        else
        {
            output = Step!.Attend(_indices[layer], step.Query, step.Keys, step.Values, step.Scale);
        }

        int length = Start + Step.Tokens;
        _attended.Add(layer, part);
        part.Attended(length, BatchSize);
        if (_attended.Count == _indices.Count)
        {
            Step.Commit();
            End(length);
        }

        return output;
    }

    /// <summary>Undoes the current step, in the model's own cache too.</summary>
    internal void Undo()
    {
        if (Step is not CacheStep step)
        {
            return;
        }

        ConversationLayer[] parts = [.. _attended.Values];
        Forget();
        step.Dispose();
        Array.ForEach(parts, part => part.Undo(Start));
    }

    /// <summary>Ends a step that only some layers have done: they keep its tokens, and the others continue without them, as two
    /// groups.</summary>
    /// <returns>The group of those that have attended, in place of this one, and that of the others; null if those have no
    /// tokens.</returns>
    internal (LayerGroup Attended, LayerGroup? Others) Part()
    {
        CacheStep step = Step!;
        AttentionLayer[] attended = [.. _attended.Keys], missing = [.. Layers.Where(layer => !HasAttended(layer))];
        LayerGroup? others = Length == 0 ? null : Extract(missing);
        LayerGroup done;
        try
        {
            _cache.Commit(step, partly: true);
            End(Start + step.Tokens);
            done = Extract(attended);
        }
        catch
        {
            others?.Dispose();
            throw;
        }

        Dispose();
        return (done, others);
    }

    /// <summary>Shortens all sequences.</summary>
    internal void Truncate(int length)
    {
        if (Array.Exists(Padding, count => count > 0))
        {
            throw new NotSupportedException("A conversation with padding cannot be rolled back.");
        }

        Array.ForEach(_sequences, sequence => _cache.Truncate(sequence, length));
        Length = length;
    }

    /// <summary>Adds tokens that the model cached by itself to the single layer.</summary>
    internal void TakeOver(Tensor keys, Tensor values)
    {
        _cache.Append(_sequences, keys, values);
        Length = checked((int)keys.size(2));
    }

    public void Dispose()
    {
        Forget();
        lock (_gate)
        {
            _disposed = true;
            _cache.Dispose();
        }

        Length = 0;
        Weigh(0);
        GC.SuppressFinalize(this);
    }

    private static MustafarModelCache Cache(int layers, Tensor keys, MustafarOptions options)
    {
        if (keys.dtype is not (ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
        {
            throw new NotSupportedException(
                $"The model computes its keys in {keys.dtype}; a compressed cache holds Float32, Float16 or BFloat16.");
        }

        return new MustafarModelCache(
            layers, KeyShape.Of(keys).Heads, keys.dtype, keys.device, options,
            new CacheLimits { MaxSequences = checked((int)keys.size(0)) });
    }

    private LayerGroup Extract(AttentionLayer[] layers)
    {
        LayerGroup part = new(layers, BatchSize, _cache.Extract(Array.ConvertAll(layers, layer => _indices[layer])))
        {
            Length = Length,
            Padding = Padding,
        };
        part.Weigh(part.Memory.TotalBytes);
        return part;
    }

    private void End(int length)
    {
        (Length, Padding) = (length, _stepPadding);
        Forget();
        Weigh(Memory.TotalBytes);
    }

    private void Forget()
    {
        Step = null;
        _attended.Clear();
        _turns?.Left.Dispose();
        _turns?.Back.Dispose();
        _turns = null;
    }

    // Tells the garbage collector how much memory can be freed here. It sees a model's own cache as a small object, so that otherwise
    // conversations that nobody disposes, as in pipelines, would wait for another reason to collect.
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
}
