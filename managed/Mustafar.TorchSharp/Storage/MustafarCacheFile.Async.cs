namespace Mustafar;

// The same on the thread pool: converting pages to the order of files and computing checksums takes long.
public static partial class MustafarCacheFile
{
    /// <inheritdoc cref="Save(string, IReadOnlyList{MustafarCache}, string, IReadOnlyDictionary{string, string}?, IProgress{double}?, CancellationToken)"/>
    /// <returns>A task that completes when everything is written. It throws the exceptions listed here. The caches can't be used
    /// meanwhile.</returns>
    public static Task SaveAsync(
        string path,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Save(path, layers, fingerprint, metadata, progress, cancellationToken), cancellationToken);

    /// <inheritdoc cref="Save(Stream, IReadOnlyList{MustafarCache}, string, IReadOnlyDictionary{string, string}?, IProgress{double}?, CancellationToken)"/>
    /// <returns>A task that completes when everything is written. It throws the exceptions listed here. The caches can't be used
    /// meanwhile.</returns>
    public static Task SaveAsync(
        Stream stream,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Save(stream, layers, fingerprint, metadata, progress, cancellationToken), cancellationToken);

    /// <inheritdoc cref="Save(string, MustafarModelCache, IReadOnlyList{int}, string, IReadOnlyDictionary{string, string}?, IProgress{double}?, CancellationToken)"/>
    /// <returns>A task that completes when everything is written. It throws the exceptions listed here. The caches can't be used
    /// meanwhile.</returns>
    public static Task SaveAsync(
        string path,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Save(path, cache, sequences, fingerprint, metadata, progress, cancellationToken), cancellationToken);

    /// <inheritdoc cref="Save(Stream, MustafarModelCache, IReadOnlyList{int}, string, IReadOnlyDictionary{string, string}?, IProgress{double}?, CancellationToken)"/>
    /// <returns>A task that completes when everything is written. It throws the exceptions listed here. The caches can't be used
    /// meanwhile.</returns>
    public static Task SaveAsync(
        Stream stream,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IReadOnlyDictionary<string, string>? metadata = null,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Save(stream, cache, sequences, fingerprint, metadata, progress, cancellationToken), cancellationToken);

    /// <inheritdoc cref="Load(string, IReadOnlyList{MustafarCache}, string, IProgress{double}?, CancellationToken)"/>
    /// <returns>The metadata that they were saved with. The task throws the exceptions listed here. The caches can't be used
    /// meanwhile.</returns>
    public static Task<IReadOnlyDictionary<string, string>> LoadAsync(
        string path,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Load(path, layers, fingerprint, progress, cancellationToken), cancellationToken);

    /// <inheritdoc cref="Load(Stream, IReadOnlyList{MustafarCache}, string, IProgress{double}?, CancellationToken)"/>
    /// <returns>The metadata that they were saved with. The task throws the exceptions listed here. The caches can't be used
    /// meanwhile.</returns>
    public static Task<IReadOnlyDictionary<string, string>> LoadAsync(
        Stream stream,
        IReadOnlyList<MustafarCache> layers,
        string fingerprint,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Load(stream, layers, fingerprint, progress, cancellationToken), cancellationToken);

    /// <inheritdoc cref="Load(string, MustafarModelCache, IReadOnlyList{int}, string, IProgress{double}?, CancellationToken)"/>
    /// <returns>The metadata that they were saved with. The task throws the exceptions listed here. The caches can't be used
    /// meanwhile.</returns>
    public static Task<IReadOnlyDictionary<string, string>> LoadAsync(
        string path,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Load(path, cache, sequences, fingerprint, progress, cancellationToken), cancellationToken);

    /// <inheritdoc cref="Load(Stream, MustafarModelCache, IReadOnlyList{int}, string, IProgress{double}?, CancellationToken)"/>
    /// <returns>The metadata that they were saved with. The task throws the exceptions listed here. The caches can't be used
    /// meanwhile.</returns>
    public static Task<IReadOnlyDictionary<string, string>> LoadAsync(
        Stream stream,
        MustafarModelCache cache,
        IReadOnlyList<int> sequences,
        string fingerprint,
        IProgress<double>? progress = null,
        CancellationToken cancellationToken = default) =>
        Task.Run(() => Load(stream, cache, sequences, fingerprint, progress, cancellationToken), cancellationToken);
}
