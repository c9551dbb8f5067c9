using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Evaluation;

/// <summary>Writes cache settings to a file that <see cref="CacheSettingReader.Load"/> reads.</summary>
public static class CacheSettingWriter
{
    private static readonly JsonSerializerOptions s_indented = new() { WriteIndented = true };

    /// <summary>Writes a file. An existing one is replaced once the new one is complete.</summary>
    /// <param name="path">The file.</param>
    /// <param name="settings">Settings with different names, none of them dense. All options are written, including defaults.</param>
    /// <exception cref="ArgumentException">There are no settings, one is dense, or two have the same name.</exception>
    /// <exception cref="IOException">The file can't be written.</exception>
    public static void Save(string path, IReadOnlyCollection<CacheSetting> settings)
    {
        ArgumentNullException.ThrowIfNull(path);
        ArgumentNullException.ThrowIfNull(settings);
        JsonObject file = [];
        foreach (CacheSetting setting in settings)
        {
            if (setting.Options is null)
            {
                throw new ArgumentException($"Expected settings with options, but '{setting.Name}' is dense.", nameof(settings));
            }

            JsonObject entry = setting.ToJson();
            entry.Remove("name");
            if (setting.Options.SlidingWindow is null)
            {
                entry.Remove("sliding_window");
            }

            if (!file.TryAdd(setting.Name, entry))
            {
                throw new ArgumentException($"Expected settings of different names, but there are two '{setting.Name}'.", nameof(settings));
            }
        }

        if (file.Count == 0)
        {
            throw new ArgumentException("Expected at least one setting, but there are none.", nameof(settings));
        }

        AtomicFile.WriteText(path, file.ToJsonString(s_indented) + "\n");
    }
}
