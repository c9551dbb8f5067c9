using System.Diagnostics.Metrics;
using System.Runtime.CompilerServices;

namespace Mustafar;

/// <summary>Metrics of caches, for OpenTelemetry, <c>dotnet-counters</c> or a <see cref="MeterListener"/>.</summary>
/// <remarks>
/// <list type="table">
/// <listheader><term>instrument of <see cref="MeterName"/></term><description>meaning</description></listheader>
/// <item><term><c>mustafar.cache.reserved</c> (bytes)</term><description>Memory that all caches have reserved,
/// <see cref="KeyValueCacheMemory.TotalBytes"/>.
/// Tag <c>cache.kind</c>: <c>compressed</c> or <c>dense</c>.</description></item>
/// <item><term><c>mustafar.cache.used</c> (bytes)</term><description>The part of it that their tokens use,
/// <see cref="KeyValueCacheMemory.UsedBytes"/>,
/// with the same tag.</description></item>
/// <item><term><c>mustafar.cache.compressed_tokens</c> (tokens)</term><description>Tokens that were compressed, counted once
/// for all layers of a cache.</description></item>
/// </list>
/// Nothing is computed while nobody listens. Caches that were dropped without being disposed are excluded once they are collected.
/// </remarks>
public static class MustafarMetrics
{
    /// <summary>Name of the meter: <c>Mustafar.TorchSharp</c>.</summary>
    public const string MeterName = "Mustafar.TorchSharp";

    private static readonly ConditionalWeakTable<IMeasuredCache, string> s_caches = [];
    private static readonly Meter s_meter = new(MeterName, typeof(MustafarMetrics).Assembly.GetName().Version?.ToString(3));

    private static readonly Counter<long> s_compressed = s_meter.CreateCounter<long>(
        "mustafar.cache.compressed_tokens", "{token}", "Tokens that were compressed, counted once for all layers.");

    static MustafarMetrics()
    {
        _ = s_meter.CreateObservableUpDownCounter(
            "mustafar.cache.reserved", () => Measure(memory => memory.TotalBytes), "By", "Memory that caches have reserved.");
        _ = s_meter.CreateObservableUpDownCounter(
            "mustafar.cache.used", () => Measure(memory => memory.UsedBytes), "By", "Memory that cached tokens use.");
    }

    /// <summary>Whether anybody listens to the number of compressed tokens.</summary>
    internal static bool CountsCompressed => s_compressed.Enabled;

    /// <summary>Counts tokens that were compressed.</summary>
    internal static void AddCompressed(long tokens)
    {
        if (tokens > 0)
        {
            s_compressed.Add(tokens);
        }
    }

    /// <summary>Measures a cache from now on, until it is removed or collected.</summary>
    internal static void Add(IMeasuredCache cache, string kind) => s_caches.Add(cache, kind);

    /// <summary>Stops measuring a cache.</summary>
    internal static void Remove(IMeasuredCache cache) => s_caches.Remove(cache);

    private static IEnumerable<Measurement<long>> Measure(Func<KeyValueCacheMemory, long> bytes)
    {
        Dictionary<string, long> sums = new() { ["compressed"] = 0, ["dense"] = 0 };
        foreach ((IMeasuredCache cache, string kind) in s_caches)
        {
            try
            {
                sums[kind] += bytes(cache.Memory);
            }
            catch (ObjectDisposedException)
            {
                // Just now, by another thread.
            }
        }

        return [.. sums.Select(sum => new Measurement<long>(sum.Value, new KeyValuePair<string, object?>("cache.kind", sum.Key)))];
    }
}

/// <summary>A cache whose memory is measured.</summary>
internal interface IMeasuredCache
{
    /// <summary>Its memory. Read by any thread.</summary>
    KeyValueCacheMemory Memory { get; }
}
