using System.Collections.ObjectModel;
using Mustafar.Storage;

namespace Mustafar;

/// <summary>Saves the caches of a model's layers to a file, and restores them without reading the text again.</summary>
/// <remarks>
/// The file is in the safetensors format and has the cache's data as the cache stores it; <c>docs/format.md</c> describes its tensors and
/// metadata. It does not depend on the device of the caches. If the path is a symbolic link, the link stays and the file that it points to
/// is written. A process that is killed while it saves leaves an unfinished file <c>NAME.{32 hexadecimal digits}.tmp</c> next to the path,
/// which the next save or load of the same path deletes. Several threads may call all members; while a cache is saved or loaded, its own
/// members throw an <see cref="InvalidOperationException"/> on other threads. An <see cref="IProgress{T}"/> receives the completed share, 0
/// to 1, in steps of a hundredth. A cancelled call leaves the file, or the caches, unchanged.
/// </remarks>
/// <example>
/// <code>
/// MustafarCacheFile.Save(path, layers, fingerprint: "my model, version 1");
///
/// // Later: empty caches of the same options and shape, one for each layer.
/// MustafarCacheFile.Load(path, restored, fingerprint: "my model, version 1");
/// </code>
/// </example>
public static partial class MustafarCacheFile
{
    /// <summary>Writes caches to a file.</summary>
    /// <param name="path">The file; an existing one is replaced once the new one is complete and on disk.</param>
    /// <param name="layers">The cache of each layer, all of one shape, dtype, and number of tokens.</param>
    /// <param name="fingerprint">Text that identifies the model (its weights), such as <see cref="FingerprintOf"/>; caches of one model
    /// mean nothing to another.</param>
    /// <param name="metadata">Additional metadata to store in the file.</param>
    /// <param name="progress">Receives the progress; null for none.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <exception cref="ArgumentException">There is no layer, layers differ in shape, dtype or lengths, or a value is null.</exception>
    /// <exception cref="ObjectDisposedException">A cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using a cache.</exception>
    /// <exception cref="IOException">The file can't be written, or the path is not a regular file. Nothing has changed.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public static void Save(
        string path,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        SaveLayers(To(path), layers, fingerprint, metadata, new FileTransfer(progress, cancellationToken));
    }

    /// <summary>Writes caches to a stream, from its current position, in the same form as a file.</summary>
    /// <param name="stream">The stream, which stays open. If it can seek, the checksum is filled in at the end; otherwise everything is
    /// read twice.</param>
    /// <param name="layers">The cache of each layer, all of one shape, dtype, and number of tokens.</param>
    /// <param name="fingerprint">Text that identifies the model (its weights), such as <see cref="FingerprintOf"/>.</param>
    /// <param name="metadata">Additional metadata to store.</param>
    /// <param name="progress">Receives the progress; null for none.</param>
    /// <param name="cancellationToken">Cancels the call; the stream then holds a part.</param>
    /// <exception cref="ArgumentException">The stream can't be written, there is no layer, layers differ in shape, dtype or lengths, or a value
    /// is null.</exception>
    /// <exception cref="ObjectDisposedException">A cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using a cache.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public static void Save(
        Stream stream,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        SaveLayers(To(stream), layers, fingerprint, metadata, new FileTransfer(progress, cancellationToken));

    private static void SaveLayers(
        Action<Action<Stream>> to,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata,
        FileTransfer transfer)
    {
        ArgumentNullException.ThrowIfNull(fingerprint);
        Validate(layers);
        using Claims claims = new(layers);
        for (int i = 1; i < layers.Count; i++)
        {
            if (!layers[i].Lengths.SequenceEqual(layers[0].Lengths))
            {
                throw new ArgumentException(
                    $"Expected layers of equal lengths [{string.Join(", ", layers[0].Lengths)}], but layer {i} has [{string.Join(", ", layers[i].Lengths)}].",
                    nameof(layers));
            }
        }

        Write(to, [.. layers.Select(layer => layer.Stored)], fingerprint, metadata, transfer);
    }

    /// <summary>Writes sequences of a whole model's cache to a file, in the same form as one cache per layer.</summary>
    /// <param name="path">The file; an existing one is replaced once the new one is complete and on disk.</param>
    /// <param name="cache">The cache.</param>
    /// <param name="sequences">The sequences, each once; pages that several sequences share are stored once.</param>
    /// <param name="fingerprint">Text that identifies the model (its weights), such as <see cref="FingerprintOf"/>; caches of one model
    /// mean nothing to another.</param>
    /// <param name="metadata">Additional metadata to store in the file.</param>
    /// <param name="progress">Receives the progress; null for none.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <exception cref="ArgumentException">There is no sequence, one occurs twice, or a value is null.</exception>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="IOException">The file can't be written, or the path is not a regular file. Nothing has changed.</exception>
    /// <exception cref="NotSupportedException">The cache holds integers on a CUDA device, which has no way to bring them into the order of files yet;
    /// or tokens of a sequence were removed, whose positions files do not have.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public static void Save(
        string path,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        SaveSequences(To(path), cache, sequences, fingerprint, metadata, new FileTransfer(progress, cancellationToken));
    }

    /// <summary>Writes sequences of a whole model's cache to a stream, from its current position, in the same form as a file.</summary>
    /// <param name="stream">The stream, which stays open. If it can seek, the checksum is filled in at the end; otherwise everything is
    /// read twice.</param>
    /// <param name="cache">The cache.</param>
    /// <param name="sequences">The sequences, each once; pages that several sequences share are written once.</param>
    /// <param name="fingerprint">Text that identifies the model (its weights), such as <see cref="FingerprintOf"/>.</param>
    /// <param name="metadata">Additional metadata to store.</param>
    /// <param name="progress">Receives the progress; null for none.</param>
    /// <param name="cancellationToken">Cancels the call; the stream then holds a part.</param>
    /// <exception cref="ArgumentException">The stream can't be written, there is no sequence, one occurs twice, or a value is null.</exception>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public static void Save(
        Stream stream,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        SaveSequences(To(stream), cache, sequences, fingerprint, metadata, new FileTransfer(progress, cancellationToken));

    private static void SaveSequences(
        Action<Action<Stream>> to,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata,
        FileTransfer transfer)
    {
        ArgumentNullException.ThrowIfNull(fingerprint);
        ArgumentNullException.ThrowIfNull(cache);
        ArgumentNullException.ThrowIfNull(sequences);
        using IDisposable claim = cache.Claim();
        foreach (int sequence in sequences)
        {
            if (cache.PositionOf(sequence) != cache.LengthOf(sequence))
            {
                throw new NotSupportedException(
                    $"Sequence {sequence} can't be saved: only {cache.LengthOf(sequence)} of its {cache.PositionOf(sequence)} tokens are left, and files do not store positions.");
            }
        }

        Write(to, cache.Stored(sequences), fingerprint, metadata, transfer);
    }

    /// <summary>Checks that caches could be saved to a file: before work whose result is to be kept there. Nothing is changed.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="IOException">The directory doesn't exist or takes no file, or what is at the path is not a regular file.</exception>
    /// <exception cref="UnauthorizedAccessException">This user may not write there.</exception>
    public static void CheckSavePath(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        AtomicFile.Try(path);
    }

    /// <summary>Restores caches from a file.</summary>
    /// <param name="path">The file.</param>
    /// <param name="layers">An empty cache for each layer, with the shape, dtype and options that it was saved with, on any device.</param>
    /// <param name="fingerprint">The text that identifies the model, as given when they were saved.</param>
    /// <param name="progress">Receives the progress; null for none.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <returns>The metadata that they were saved with.</returns>
    /// <exception cref="ArgumentException">There is no layer, layers differ in shape or dtype, or one is not empty.</exception>
    /// <exception cref="ObjectDisposedException">A cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using a cache.</exception>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="IOException">It is not a regular file, or can't be read.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    /// <exception cref="MustafarCacheFileException">The file belongs to another model, has other options or another shape, is damaged, or
    /// is of a newer version. The caches are still empty.</exception>
    public static IReadOnlyDictionary<string, string> Load(
        string path,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        return LoadLayers(From(path), layers, fingerprint, new FileTransfer(progress, cancellationToken));
    }

    /// <summary>Restores caches from a stream, whose rest, from its current position, holds nothing else.</summary>
    /// <param name="stream">The stream, which stays open. If it can't seek, or is not at its first byte, it is copied to a temporary file
    /// first.</param>
    /// <param name="layers">An empty cache for each layer, with the shape, dtype and options that it was saved with, on any device.</param>
    /// <param name="fingerprint">The text that identifies the model, as given when they were saved.</param>
    /// <param name="progress">Receives the progress; null for none.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <returns>The metadata that they were saved with.</returns>
    /// <exception cref="ArgumentException">The stream can't be read, there is no layer, layers differ in shape or dtype, or one is not empty.</exception>
    /// <exception cref="ObjectDisposedException">A cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">Another thread is using a cache.</exception>
    /// <exception cref="MustafarCacheFileException">The data belongs to another model, has other options or another shape, is damaged, or
    /// is of a newer version. The caches are still empty.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled. The caches are still empty.</exception>
    public static IReadOnlyDictionary<string, string> Load(
        Stream stream,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        LoadLayers(From(stream, cancellationToken), layers, fingerprint, new FileTransfer(progress, cancellationToken));

    private static Dictionary<string, string> LoadLayers(
        Source from, IReadOnlyList<MustafarCache> layers, string fingerprint, FileTransfer transfer)
    {
        ArgumentNullException.ThrowIfNull(fingerprint);
        Validate(layers);
        using Claims claims = new(layers);
        for (int i = 0; i < layers.Count; i++)
        {
            if (layers[i].Length > 0)
            {
                throw new ArgumentException($"Expected empty caches, but layer {i} holds {layers[i].Length} tokens.", nameof(layers));
            }
        }

        return Read(from, [.. layers.Select(layer => layer.Stored)], fingerprint, transfer);
    }

    /// <summary>Restores sequences of a whole model's cache from a file, written by a model's cache or by one cache per layer.</summary>
    /// <param name="path">The file.</param>
    /// <param name="cache">A cache with the shape, dtype and options that they were saved with, on any device.</param>
    /// <param name="sequences">An empty sequence of the cache for each sequence in the file.</param>
    /// <param name="fingerprint">The text that identifies the model, as given when they were saved.</param>
    /// <param name="progress">Receives the progress; null for none.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <returns>The metadata that they were saved with.</returns>
    /// <exception cref="ArgumentException">There is no sequence, one occurs twice, or one is not empty.</exception>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="CacheBudgetException">The content of the file needs more memory than is left.</exception>
    /// <exception cref="CacheLimitException">A sequence in the file is longer than the cache allows.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="IOException">It is not a regular file, or can't be read.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    /// <exception cref="MustafarCacheFileException">The file belongs to another model, has other options or another shape, is damaged, or
    /// is of a newer version. The sequences are still empty.</exception>
    public static IReadOnlyDictionary<string, string> Load(
        string path,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        return LoadSequences(From(path), cache, sequences, fingerprint, new FileTransfer(progress, cancellationToken));
    }

    /// <summary>Restores sequences of a whole model's cache from a stream, whose rest, from its current position, holds nothing
    /// else.</summary>
    /// <param name="stream">The stream, which stays open. If it can't seek, or is not at its first byte, it is copied to a temporary file
    /// first.</param>
    /// <param name="cache">A cache with the shape, dtype and options that they were saved with, on any device.</param>
    /// <param name="sequences">An empty sequence of the cache for each sequence in the stream.</param>
    /// <param name="fingerprint">The text that identifies the model, as given when they were saved.</param>
    /// <param name="progress">Receives the progress; null for none.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <returns>The metadata that they were saved with.</returns>
    /// <exception cref="ArgumentException">The stream can't be read, there is no sequence, one occurs twice, or one is not empty.</exception>
    /// <exception cref="SequenceNotFoundException">The cache has no such sequence.</exception>
    /// <exception cref="CacheBudgetException">The content of the stream needs more memory than is left.</exception>
    /// <exception cref="CacheLimitException">A sequence in the stream is longer than the cache allows.</exception>
    /// <exception cref="ObjectDisposedException">The cache was disposed.</exception>
    /// <exception cref="InvalidOperationException">A step is under way, or another thread is using the cache.</exception>
    /// <exception cref="MustafarCacheFileException">The data belongs to another model, has other options or another shape, is damaged, or
    /// is of a newer version. The sequences are still empty.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled. The sequences are still empty.</exception>
    public static IReadOnlyDictionary<string, string> Load(
        Stream stream,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        LoadSequences(From(stream, cancellationToken), cache, sequences, fingerprint, new FileTransfer(progress, cancellationToken));

    private static Dictionary<string, string> LoadSequences(
        Source from, MustafarModelCache cache, IReadOnlyList<int> sequences, string fingerprint, FileTransfer transfer)
    {
        ArgumentNullException.ThrowIfNull(fingerprint);
        ArgumentNullException.ThrowIfNull(cache);
        ArgumentNullException.ThrowIfNull(sequences);
        using IDisposable claim = cache.Claim();
        foreach (int sequence in sequences)
        {
            if (cache.LengthOf(sequence) > 0)
            {
                throw new ArgumentException(
                    $"Expected empty sequences, but sequence {sequence} holds {cache.LengthOf(sequence)} tokens.", nameof(sequences));
            }
        }

        return Read(from, cache.Stored(sequences), fingerprint, transfer);
    }

    /// <summary>Writes one cache to a file, as the only layer.</summary>
    /// <param name="cache">The cache.</param>
    /// <param name="path">The file; an existing one is replaced.</param>
    /// <param name="fingerprint">Text that identifies the model.</param>
    /// <param name="metadata">Additional metadata to store in the file.</param>
    public static void Save(
        this MustafarCache cache, string path, string fingerprint, IReadOnlyDictionary<string, string>? metadata = null) =>
        Save(path, [cache], fingerprint, metadata);

    /// <summary>Restores one empty cache from a file of one layer.</summary>
    /// <param name="cache">The cache.</param>
    /// <param name="path">The file.</param>
    /// <param name="fingerprint">Text that identifies the model.</param>
    /// <returns>The metadata that was saved with it.</returns>
    public static IReadOnlyDictionary<string, string> Load(this MustafarCache cache, string path, string fingerprint) =>
        Load(path, [cache], fingerprint);

    private static void Write(
        Action<Action<Stream>> to,
        StoredLayer[] layers,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata,
        FileTransfer transfer)
    {
        metadata ??= ReadOnlyDictionary<string, string>.Empty;
        foreach ((string key, string value) in metadata)
        {
            if (value is null)
            {
                throw new ArgumentException($"Expected a text as '{key}', but it is null.", nameof(metadata));
            }
        }

        to(stream => new CacheFileWriter(layers, transfer).Write(stream, fingerprint, metadata));
        transfer.End();
    }

    private static Dictionary<string, string> Read(Source from, StoredLayer[] layers, string fingerprint, FileTransfer transfer)
    {
        (Stream stream, string name, bool isOwn) = from();
        try
        {
            CacheFileReader reader = new(stream, name, transfer);
            reader.Restore(layers, fingerprint);
            transfer.End();
            return reader.UserMetadata;
        }
        finally
        {
            if (isOwn)
            {
                stream.Dispose();
            }
        }
    }

    private static void Validate(IReadOnlyList<MustafarCache> layers)
    {
        ArgumentNullException.ThrowIfNull(layers);
        if (layers.Count == 0 || layers.Contains(null))
        {
            throw new ArgumentException("Expected the cache of at least one layer, none of them null.", nameof(layers));
        }

        if (layers.Distinct().Count() != layers.Count)
        {
            throw new ArgumentException("Expected a separate cache for each layer, but one occurs twice.", nameof(layers));
        }

        string expected = Describe(layers[0]);
        for (int i = 1; i < layers.Count; i++)
        {
            if (Describe(layers[i]) is string actual && actual != expected)
            {
                throw new ArgumentException($"Expected layers like the first, {expected}, but layer {i} is {actual}.", nameof(layers));
            }
        }
    }

    private static string Describe(MustafarCache layer) =>
        $"{layer.DType} [batch {layer.BatchSize}, num_kv_heads {layer.NumKvHeads}, head_dim {layer.HeadDim}]";

    // Keeps other threads out of all layers.
    private sealed class Claims : IDisposable
    {
        private readonly List<IDisposable> _claims = [];

        internal Claims(IReadOnlyList<MustafarCache> layers)
        {
            try
            {
                foreach (MustafarCache layer in layers)
                {
                    _claims.Add(layer.Claim());
                }
            }
            catch
            {
                Dispose();
                throw;
            }
        }

        public void Dispose() => _claims.ForEach(claim => claim.Dispose());
    }
}
