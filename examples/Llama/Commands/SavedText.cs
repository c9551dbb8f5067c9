using System.Diagnostics;
using System.Globalization;
using Mustafar.Models.Llama;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A text restored from a file with its cache.</summary>
/// <param name="Text">The text.</param>
/// <param name="Uncached">Ids at its end that the cache doesn't hold yet.</param>
/// <param name="CachedTokens">Tokens that it holds.</param>
/// <param name="Seconds">Time that restoring it took.</param>
internal sealed record SavedText(string Text, IReadOnlyList<int> Uncached, int CachedTokens, double Seconds)
{
    private const string TextKey = "text";
    private const string UncachedKey = "uncached";

    /// <summary>Restores an empty cache of one sequence.</summary>
    /// <exception cref="MustafarCacheFileException">The file belongs to another model, has other options, is damaged, or holds a chat.</exception>
    public static SavedText Load(string path, ModelSession session, ModelCache cache)
    {
        Stopwatch watch = Stopwatch.StartNew();
        IReadOnlyDictionary<string, string> metadata = cache.Load(path, session.Language.Fingerprint);
        if (!metadata.TryGetValue(TextKey, out string? text) || !metadata.TryGetValue(UncachedKey, out string? ids))
        {
            throw new MustafarCacheFileException("expected a text saved by generate, but the file holds something else.", path);
        }

        List<int> uncached = [];
        foreach (string id in ids.Split(' ', StringSplitOptions.RemoveEmptyEntries))
        {
            uncached.Add(int.TryParse(id, NumberStyles.None, CultureInfo.InvariantCulture, out int number)
                ? number
                : throw new MustafarCacheFileException($"expected ids as '{UncachedKey}', but got '{id}'.", path));
        }

        return new SavedText(text, uncached, cache.Length, watch.Elapsed.TotalSeconds);
    }

    /// <summary>Writes the cache of a text of one sequence.</summary>
    /// <param name="path">The file.</param>
    /// <param name="session">The model.</param>
    /// <param name="cache">The cache.</param>
    /// <param name="text">The text.</param>
    /// <param name="latest">Its latest ids, including those that are not cached.</param>
    /// <param name="tokens">How many tokens it has.</param>
    public static void Save(string path, ModelSession session, ModelCache cache, string text, IReadOnlyList<int> latest, int tokens)
    {
        // A token that ended the text is not part of it.
        IEnumerable<int> uncached = latest.TakeLast(tokens - cache.Length).Where(id => !session.StopTokens.Contains(id));
        cache.Save(path, session.Language.Fingerprint, new Dictionary<string, string>
        {
            [TextKey] = text,
            [UncachedKey] = string.Join(' ', uncached.Select(id => id.ToString(CultureInfo.InvariantCulture))),
        });
    }

    /// <summary>How long the first new token took.</summary>
    /// <param name="readTokens">Tokens that were read for it.</param>
    /// <param name="readSeconds">Time that reading them took.</param>
    public string Describe(int readTokens, double readSeconds) => string.Create(
        CultureInfo.InvariantCulture,
        $"{Seconds + readSeconds:F3} s to the first token: {CachedTokens} tokens restored in {Seconds:F3} s, {readTokens} read in {readSeconds:F3} s");
}
