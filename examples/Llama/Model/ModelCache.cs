namespace Mustafar.Examples.Llama.Model;

/// <summary>The key/value caches of all layers of a model.</summary>
public sealed class ModelCache : IDisposable
{
    private readonly KeyValueCache[] _layers;

    /// <summary>Takes over the caches of all layers.</summary>
    /// <param name="layers">One cache per layer, all of one batch size and length.</param>
    public ModelCache(IEnumerable<KeyValueCache> layers)
    {
        ArgumentNullException.ThrowIfNull(layers);
        _layers = layers.ToArray();
        if (_layers.Length == 0)
        {
            throw new ArgumentException("Expected at least one layer, but got none.", nameof(layers));
        }
    }

    /// <summary>The cache of each layer.</summary>
    public IReadOnlyList<KeyValueCache> Layers => _layers;

    /// <summary>Number of sequences.</summary>
    public int BatchSize => _layers[0].BatchSize;

    /// <summary>Cached tokens of the longest sequence.</summary>
    public int Length => _layers[0].Length;

    /// <summary>Cached tokens of each sequence.</summary>
    public IReadOnlyList<int> Lengths => _layers[0].Lengths;

    /// <summary>What all layers together occupy.</summary>
    public KeyValueCacheMemory Memory => _layers.Aggregate(default(KeyValueCacheMemory), (sum, layer) => sum + layer.Memory);

    /// <summary>Makes empty dense caches for a model, with its sliding window where it has one.</summary>
    /// <param name="model">The model.</param>
    /// <param name="batchSize">Number of sequences.</param>
    /// <param name="capacity">Tokens to allocate for at first.</param>
    public static ModelCache Dense(LlamaForCausalLM model, int batchSize = 1, int capacity = 0)
    {
        ArgumentNullException.ThrowIfNull(model);
        LlamaConfig config = model.Config;
        return ForEachLayer(config.NumLayers, layer =>
            new DenseCache(batchSize, config.NumKvHeads, config.HeadDim, model.DType, model.Device, capacity, config.WindowOf(layer)));
    }

    /// <summary>Makes empty caches that prune and compress, for a model.</summary>
    /// <param name="model">The model.</param>
    /// <param name="options">How they prune; the model's sliding window, where it has one, goes before theirs.</param>
    /// <param name="batchSize">Number of sequences.</param>
    public static ModelCache Mustafar(LlamaForCausalLM model, MustafarOptions options, int batchSize = 1)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(options);
        LlamaConfig config = model.Config;
        return ForEachLayer(config.NumLayers, layer => new MustafarCache(
            batchSize,
            config.NumKvHeads,
            config.HeadDim,
            model.DType,
            model.Device,
            options with { SlidingWindow = config.WindowOf(layer) ?? options.SlidingWindow }));
    }

    /// <summary>Makes caches whose sequences continue sequences of these, for beams or several answers to one prompt.</summary>
    /// <param name="parents">For each sequence of the new caches the one that it continues; one may occur several times.</param>
    /// <returns>Caches independent of these, for the caller to dispose. Compressed pages are shared.</returns>
    /// <exception cref="ArgumentException">There are no parents, or one is not a sequence of these caches.</exception>
    public ModelCache Fork(ReadOnlySpan<int> parents)
    {
        int[] sequences = parents.ToArray();
        return ForEachLayer(_layers.Length, layer => _layers[layer].Fork(sequences));
    }

    /// <summary>Writes the caches to a file.</summary>
    /// <param name="path">The file; one that is there is replaced once the new one is complete.</param>
    /// <param name="fingerprint">What tells the model apart from others.</param>
    /// <param name="metadata">What else is to be kept in the file.</param>
    /// <exception cref="NotSupportedException">They are not compressed ones.</exception>
    /// <exception cref="IOException">The file can't be written; one that was there before is as it was.</exception>
    public void Save(string path, string fingerprint, IReadOnlyDictionary<string, string>? metadata = null) =>
        MustafarCacheFile.Save(path, CompressedLayers(), fingerprint, metadata);

    /// <summary>Restores the caches, which must be empty, from a file.</summary>
    /// <param name="path">The file.</param>
    /// <param name="fingerprint">What tells the model apart from others.</param>
    /// <returns>What else is kept in the file.</returns>
    /// <exception cref="NotSupportedException">They are not compressed ones.</exception>
    /// <exception cref="IOException">There is no such file, or it is of another model, of other options, or damaged; the caches are still
    /// empty.</exception>
    public IReadOnlyDictionary<string, string> Load(string path, string fingerprint) =>
        MustafarCacheFile.Load(path, CompressedLayers(), fingerprint);

    /// <summary>Shortens every sequence that is longer to its first tokens.</summary>
    /// <param name="length">Tokens to leave at most.</param>
    public void Truncate(int length)
    {
        foreach (KeyValueCache layer in _layers)
        {
            layer.Truncate(length);
        }
    }

    /// <summary>Forgets all tokens.</summary>
    public void Clear()
    {
        foreach (KeyValueCache layer in _layers)
        {
            layer.Clear();
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (KeyValueCache layer in _layers)
        {
            layer.Dispose();
        }
    }

    private MustafarCache[] CompressedLayers() => _layers.All(layer => layer is MustafarCache)
        ? [.. _layers.Cast<MustafarCache>()]
        : throw new NotSupportedException($"Only compressed caches go to a file, not a {_layers.First(layer => layer is not MustafarCache).GetType().Name}.");

    private static ModelCache ForEachLayer(int count, Func<int, KeyValueCache> make)
    {
        List<KeyValueCache> layers = new(count);
        try
        {
            for (int i = 0; i < count; i++)
            {
                layers.Add(make(i));
            }
        }
        catch
        {
            layers.ForEach(layer => layer.Dispose());
            throw;
        }

        return new ModelCache(layers);
    }
}
