using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Evaluation;

/// <summary>Eviction in cache settings: <c>eviction</c> is the method, <c>capacity</c> the number of tokens that stay; <c>recent_tokens</c>
/// and <c>kernel_size</c> are the properties of the same names in <see cref="TokenEviction"/>.</summary>
internal static class EvictionSetting
{
    /// <summary>The methods' names.</summary>
    public static readonly IReadOnlyList<string> Methods = ["streaming-llm", "snapkv", "h2o"];

    /// <summary>The keys of a setting.</summary>
    public static readonly string[] Keys = ["eviction", "capacity", "recent_tokens", "kernel_size"];

    /// <summary>Makes the eviction of a method.</summary>
    /// <param name="method">One of <see cref="Methods"/>.</param>
    /// <param name="capacity">Number of tokens that stay.</param>
    /// <param name="recentTokens">Number of latest tokens among them; the method's default if null.</param>
    /// <param name="kernelSize">Number of neighbouring tokens over which SnapKV pools scores; its default if null.</param>
    /// <exception cref="ArgumentOutOfRangeException">A number is out of range.</exception>
    public static TokenEviction Of(string method, int capacity, int? recentTokens = null, int? kernelSize = null) => method switch
    {
        "streaming-llm" => recentTokens is int recent ? TokenEviction.StreamingLlm(capacity, capacity - recent) : TokenEviction.StreamingLlm(capacity),
        "snapkv" => TokenEviction.SnapKv(capacity, recentTokens ?? 32, kernelSize ?? 7),
        _ => TokenEviction.HeavyHitters(capacity, recentTokens),
    };

    /// <summary>Reads the eviction of a setting; returns <paramref name="basis"/> if the setting does not mention it.</summary>
    /// <exception cref="CheckpointException">The eviction is not valid.</exception>
    public static TokenEviction? Read(JsonElement entry, TokenEviction? basis, string place)
    {
        if (entry.FindString(Keys[0], place) is not string method)
        {
            string? other = Keys.FirstOrDefault(key => entry.Find(key) is not null);
            return other is null ? basis : throw new CheckpointException($"expected '{Keys[0]}' beside '{other}', but the key is absent.", place);
        }

        if (!Methods.Contains(method))
        {
            throw new CheckpointException($"expected {string.Join(", ", Methods)} as '{Keys[0]}', but got '{method}'.", place);
        }

        if (method != "snapkv" && entry.Find(Keys[3]) is not null)
        {
            throw new CheckpointException($"expected no '{Keys[3]}' with {method}, which pools no scores, but it is there.", place);
        }

        try
        {
            return Of(method, entry.RequireInt32(Keys[1], place), entry.FindInt32(Keys[2], place), entry.FindInt32(Keys[3], place));
        }
        catch (ArgumentOutOfRangeException exception)
        {
            throw new CheckpointException(
                string.Create(CultureInfo.InvariantCulture, $"'{Keys[0]}': {exception.Message.Split(" (Parameter ")[0]} Got {exception.ActualValue}."), place);
        }
    }

    /// <summary>Writes the keys that <see cref="Read"/> reads.</summary>
    public static void AddTo(JsonObject json, TokenEviction eviction)
    {
        json[Keys[0]] = Methods[(int)eviction.Method];
        json[Keys[1]] = eviction.Capacity;
        json[Keys[2]] = eviction.RecentTokens;
        if (eviction.Method == TokenEvictionMethod.RecentAttention)
        {
            json[Keys[3]] = eviction.KernelSize;
        }
    }
}
