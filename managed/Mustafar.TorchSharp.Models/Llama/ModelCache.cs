using TorchSharp;

namespace Mustafar.Models.Llama;

/// <summary>A batch of sequences in a <see cref="ModelKeyValueCache"/>: the keys and values of all layers of a model.</summary>
/// <remarks>
/// Forks are sequences of the same cache, which is disposed with the last of them. Only one thread at a time may use a batch and its forks.
/// Room that forks needed is kept for later ones.
/// </remarks>
public sealed class ModelCache : IDisposable
{
    private readonly Shared _shared;
    private int[] _sequences;
    private bool _disposed;

    /// <summary>Takes over a cache, and adds sequences to it.</summary>
    /// <param name="cache">The cache.</param>
    /// <param name="batchSize">Number of sequences.</param>
    /// <exception cref="CacheLimitException">The cache has no room for them; it is unchanged, and not taken over.</exception>
    public ModelCache(ModelKeyValueCache cache, int batchSize = 1)
    {
        ArgumentNullException.ThrowIfNull(cache);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(batchSize);
        cache.EnsureCapacity(cache.Sequences.Count + batchSize);
        _shared = new Shared(cache);
        _sequences = [.. Enumerable.Range(0, batchSize).Select(_ => cache.AddSequence())];
    }

    private ModelCache(Shared shared, int[] sequences)
    {
        shared.Batches++;
        (_shared, _sequences) = (shared, sequences);
    }

    /// <summary>The cache that the sequences are in.</summary>
    /// <exception cref="ObjectDisposedException">The batch was disposed.</exception>
    public ModelKeyValueCache Cache
    {
        get
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            return _shared.Cache;
        }
    }

    /// <summary>The number of each sequence in <see cref="Cache"/>.</summary>
    public IReadOnlyList<int> Sequences => _sequences;

    /// <summary>Number of sequences.</summary>
    public int BatchSize => _sequences.Length;

    /// <summary>Cached tokens of the longest sequence.</summary>
    public int Length => Lengths.Max();

    /// <summary>Cached tokens of each sequence.</summary>
    public IReadOnlyList<int> Lengths => Array.ConvertAll(_sequences, Cache.LengthOf);

    /// <summary>Position of each sequence's next token: the number of tokens it was given, however many of them are still stored.</summary>
    public IReadOnlyList<int> Positions => Array.ConvertAll(_sequences, Cache.PositionOf);

    /// <summary>The memory of <see cref="Cache"/>, including all forks, compared with what these sequences would take in a dense cache with
    /// all tokens that they were given.</summary>
    public KeyValueCacheMemory Memory
    {
        get
        {
            ModelKeyValueCache cache = Cache;
            long elements = Positions.Sum(position => (long)position) * 2 * cache.NumLayers * cache.NumKvHeads * cache.HeadDim;
            return cache.Memory with { DenseBytes = elements * cache.DType.ElementSize(), Fp16Bytes = elements * 2 };
        }
    }

    /// <summary>Makes empty sequences in a dense cache for a model, with its sliding window if it has one.</summary>
    /// <param name="model">The model.</param>
    /// <param name="batchSize">Number of sequences.</param>
    public static ModelCache Dense(LlamaForCausalLM model, int batchSize = 1)
    {
        ArgumentNullException.ThrowIfNull(model);
        LlamaConfig config = model.Config;
        int?[] windows = [.. Enumerable.Range(0, config.NumLayers).Select(config.WindowOf)];
        return Of(new DenseModelCache(windows, config.KeyValueShape, model.DType, model.Device), batchSize);
    }

    /// <summary>Makes empty sequences in a cache that prunes and compresses, for a model.</summary>
    /// <param name="model">The model.</param>
    /// <param name="options">How it prunes; the model's sliding window, if it has one, takes precedence.</param>
    /// <param name="batchSize">Number of sequences.</param>
    public static ModelCache Mustafar(LlamaForCausalLM model, MustafarOptions options, int batchSize = 1)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(options);
        return Mustafar(model, [.. Enumerable.Repeat(options, model.Config.NumLayers)], batchSize);
    }

    /// <summary>Makes empty sequences in a cache for a model, with separate options for each layer.</summary>
    /// <param name="model">The model.</param>
    /// <param name="layers">How each layer prunes; the model's sliding window, if it has one, takes precedence.</param>
    /// <param name="batchSize">Number of sequences.</param>
    /// <exception cref="ArgumentException">The number of layers differs, or layers differ in options that must be the same:
    /// <see cref="MustafarModelCache"/>.</exception>
    public static ModelCache Mustafar(LlamaForCausalLM model, IReadOnlyList<MustafarOptions> layers, int batchSize = 1)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(layers);
        LlamaConfig config = model.Config;
        if (layers.Count != config.NumLayers)
        {
            throw new ArgumentException($"Expected the options of {config.NumLayers} layers, the number in the model, but got {layers.Count}.", nameof(layers));
        }

        MustafarOptions[] own = [.. layers.Select((options, layer) => options with { SlidingWindow = config.WindowOf(layer) ?? options.SlidingWindow })];
        return Of(new MustafarModelCache(own, config.KeyValueShape, model.DType, model.Device), batchSize);
    }

    /// <summary>Adds sequences to the cache that continue these, for beams or several answers to one prompt.</summary>
    /// <param name="parents">For each new sequence the one of these that it continues; one may occur several times.</param>
    /// <returns>The new sequences, for the caller to dispose. Compressed pages are shared.</returns>
    /// <exception cref="ArgumentException">There are no parents, or one is not a sequence of these.</exception>
    /// <exception cref="CacheLimitException">The cache has no room for them; it is unchanged.</exception>
    public ModelCache Fork(ReadOnlySpan<int> parents)
    {
        CheckParents(parents);
        int[] sequences = new int[parents.Length];
        for (int i = 0; i < parents.Length; i++)
        {
            sequences[i] = _sequences[parents[i]];
        }

        return new ModelCache(_shared, ForksOf(sequences));
    }

    /// <summary>Replaces the sequences of the batch by sequences that continue them, like <see cref="Fork"/>.</summary>
    /// <remarks>The first one that continues a sequence takes it over, so that no more are copied, or exist at once, than
    /// necessary.</remarks>
    /// <param name="parents">For each sequence from now on the present one that it continues; one may occur several times.</param>
    /// <exception cref="ArgumentException">There are no parents, or one is not a sequence of these.</exception>
    /// <exception cref="CacheLimitException">The cache has no room for them; only sequences without a continuation are gone.</exception>
    public void Reorder(ReadOnlySpan<int> parents)
    {
        CheckParents(parents);
        int[] next = new int[parents.Length];
        List<int> repeated = []; // places in next
        HashSet<int> kept = [];
        for (int i = 0; i < parents.Length; i++)
        {
            next[i] = _sequences[parents[i]];
            if (!kept.Add(next[i]))
            {
                repeated.Add(i);
            }
        }

        Array.ForEach(Array.FindAll(_sequences, sequence => !kept.Contains(sequence)), Cache.RemoveSequence);
        _sequences = [.. kept]; // if forking fails
        int[] forks = ForksOf([.. repeated.Select(i => next[i])]);
        for (int i = 0; i < forks.Length; i++)
        {
            next[repeated[i]] = forks[i];
        }

        _sequences = next;
    }

    /// <summary>Writes the sequences to a file.</summary>
    /// <param name="path">The file; an existing one is replaced once the new one is complete.</param>
    /// <param name="fingerprint">Text that identifies the model.</param>
    /// <param name="metadata">Additional metadata to store in the file.</param>
    /// <param name="progress">Receives the completed share, 0 to 1; null for none.</param>
    /// <param name="cancellationToken">Cancels the call; an existing file is unchanged.</param>
    /// <exception cref="NotSupportedException">The cache is not a compressed one.</exception>
    /// <exception cref="IOException">The file can't be written; an existing one is unchanged.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public void Save(
        string path,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        MustafarCacheFile.Save(path, Compressed(), _sequences, fingerprint, metadata, progress, cancellationToken);

    /// <summary>Restores the sequences, which must be empty, from a file.</summary>
    /// <param name="path">The file.</param>
    /// <param name="fingerprint">Text that identifies the model.</param>
    /// <param name="progress">Receives the completed share, 0 to 1; null for none.</param>
    /// <param name="cancellationToken">Cancels the call; the sequences are still empty.</param>
    /// <returns>The additional metadata in the file.</returns>
    /// <exception cref="ArgumentException">A sequence is not empty.</exception>
    /// <exception cref="NotSupportedException">The cache is not a compressed one.</exception>
    /// <exception cref="IOException">There is no such file, or it belongs to another model, has other options, or is damaged; the sequences
    /// are still empty.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public IReadOnlyDictionary<string, string> Load(
        string path, string fingerprint, IProgress<double>? progress = null, CancellationToken cancellationToken = default) =>
        MustafarCacheFile.Load(path, Compressed(), _sequences, fingerprint, progress, cancellationToken);

    /// <inheritdoc cref="Save"/>
    /// <returns>A task of the thread pool that completes when everything is written. It throws the exceptions listed here. The cache can't be
    /// used meanwhile.</returns>
    public Task SaveAsync(
        string path,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Save(path, fingerprint, metadata, progress, cancellationToken), cancellationToken);

    /// <inheritdoc cref="Load"/>
    /// <returns>The additional metadata in the file. The task, of the thread pool, throws the exceptions listed here. The cache can't be used
    /// meanwhile.</returns>
    public Task<IReadOnlyDictionary<string, string>> LoadAsync(
        string path, string fingerprint, IProgress<double>? progress = null, CancellationToken cancellationToken = default) =>
        Task.Run(() => Load(path, fingerprint, progress, cancellationToken), cancellationToken);

    /// <summary>Shortens every sequence that is longer to its first tokens.</summary>
    /// <param name="length">Maximum number of tokens that remain.</param>
    /// <exception cref="ArgumentOutOfRangeException"><paramref name="length"/> is negative.</exception>
    /// <exception cref="InvalidOperationException">Tokens that a sequence's next one would see have left every layer's sliding window;
    /// the sequences before it are already shortened.</exception>
    public void Truncate(int length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        foreach (int sequence in _sequences)
        {
            if (Cache.LengthOf(sequence) > length)
            {
                Cache.Truncate(sequence, length);
            }
        }
    }

    /// <summary>Drops all tokens.</summary>
    public void Clear() => Truncate(0);

    /// <summary>Removes the sequences from the cache, and disposes it with the last ones.</summary>
    public void Dispose()
    {
        if (_disposed)
        {
            return;
        }

        _disposed = true;
        if (--_shared.Batches == 0)
        {
            _shared.Cache.Dispose();
        }
        else
        {
            Array.ForEach(_sequences, _shared.Cache.RemoveSequence);
        }
    }

    private static ModelCache Of(ModelKeyValueCache cache, int batchSize)
    {
        try
        {
            return new ModelCache(cache, batchSize);
        }
        catch
        {
            cache.Dispose();
            throw;
        }
    }

    private MustafarModelCache Compressed() => Cache as MustafarModelCache
        ?? throw new NotSupportedException($"Only compressed caches can be saved or loaded, not a {Cache.GetType().Name}.");

    private void CheckParents(ReadOnlySpan<int> parents)
    {
        if (parents.IsEmpty)
        {
            throw new ArgumentException("Expected a parent for each sequence, but got none.", nameof(parents));
        }

        foreach (int parent in parents)
        {
            if (parent < 0 || parent >= BatchSize)
            {
                throw new ArgumentOutOfRangeException(nameof(parents), parent, $"Expected sequences 0 to {BatchSize - 1}.");
            }
        }
    }

    // All of them or none.
    private int[] ForksOf(int[] sequences)
    {
        ModelKeyValueCache cache = Cache;
        cache.EnsureCapacity(cache.Sequences.Count + sequences.Length);
        List<int> forks = [];
        try
        {
            foreach (int sequence in sequences)
            {
                forks.Add(cache.Fork(sequence));
            }

            return [.. forks];
        }
        catch
        {
            forks.ForEach(cache.RemoveSequence);
            throw;
        }
    }

    // A cache, and its number of batches.
    private sealed class Shared(ModelKeyValueCache cache)
    {
        public ModelKeyValueCache Cache => cache;

        public int Batches { get; set; } = 1;
    }
}
