using System.Globalization;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>The settings of a run. Sparsity is the share of a head's channels that was actually pruned; bits are per stored number.
/// If layers differ, numbers are means over them, and a flag is true if it is true for any layer.</summary>
internal sealed record RunReport(
    string Model,
    string Attention,
    double KeySparsity,
    double ValueSparsity,
    double KeysKept,
    double ValuesKept,
    int HeadDim,
    bool BalancedKeys,
    bool BalancedValues,
    string KeySelection,
    string ValueSelection,
    double KeyBits,
    double ValueBits,
    bool KeyChannelScales,
    bool KeyRotation,
    int? LocalWindow,
    int? Sinks,
    int? GroupSize,
    IReadOnlyList<LayerReport>? Layers,
    string Device,
    string Dtype,
    int Threads)
{
    /// <summary>Describes a session.</summary>
    public static RunReport Of(ModelSession session) => Of(session, session.Settings.Attention);

    /// <summary>Describes a session with a cache of a given kind.</summary>
    public static RunReport Of(ModelSession session, AttentionKind attention)
    {
        CacheSetting cache = attention == AttentionKind.Mustafar ? session.Settings.Cache : CacheSetting.Dense;
        MustafarOptions? options = cache.Options;
        int headDim = session.Model.Config.HeadDim;
        int native = session.Model.DType == ScalarType.Float32 ? 32 : 16;
        MustafarOptions[] layers = [.. cache.Layers ?? (options is null ? [] : [options])];
        double keysKept = Mean(layer => layer.KeysKept(headDim), headDim);
        double valuesKept = Mean(layer => layer.ValuesKept(headDim), headDim);
        return new RunReport(
            session.Settings.Model,
            attention == AttentionKind.Mustafar ? "mustafar" : "dense",
            1 - (keysKept / headDim),
            1 - (valuesKept / headDim),
            keysKept,
            valuesKept,
            headDim,
            layers.Any(layer => layer.BalancedKeys),
            layers.Any(layer => layer.BalancedValues),
            Names(layer => layer.KeySelection),
            Names(layer => layer.ValueSelection),
            Mean(layer => layer.KeyBits < 16 ? layer.KeyBits : native, native),
            Mean(layer => layer.ValueBits < 16 ? layer.ValueBits : native, native),
            layers.Any(layer => layer.KeyChannelScales),
            layers.Any(layer => layer.KeyRotation),
            options?.LocalWindow,
            options?.SinkTokens,
            options?.GroupSize,
            cache.Layers is null ? null : [.. layers.Select(layer => LayerReport.Of(layer, headDim))],
            session.Model.Device.ToString(),
            session.Model.DType switch
            {
                ScalarType.Float32 => "float32",
                ScalarType.Float16 => "float16",
                _ => "bfloat16",
            },
            get_num_threads());

        string Names(Func<MustafarOptions, ChannelSelection> selection) => layers.Length == 0
            ? Mustafar.KeySelection.Magnitude.Name
            : string.Join(", ", layers.Select(selection).Select(own => SimulatedFormat.Of(own) is null ? own.Name : $"simulated {own.Name}").Distinct());

        double Mean(Func<MustafarOptions, double> number, int dense) => layers.Length == 0 ? dense : layers.Average(number);
    }

    /// <summary>The sparsity as text.</summary>
    public string DescribeSparsity() => (Layers is null ? DescribeAll() : DescribeLayers()) + (Sinks > 0 ? $", first {Sinks} tokens dense" : "");

    private string DescribeAll() => string.Create(
        CultureInfo.InvariantCulture,
        $"keys {KeySparsity:P1} ({KeysKept} of {HeadDim} channels kept{Stored(KeySelection, BalancedKeys, KeyBits)}{(KeyChannelScales ? " with channel scales" : "")}{(KeyRotation ? ", rotated" : "")}), values {ValueSparsity:P1} ({ValuesKept} of {HeadDim} kept{Stored(ValueSelection, BalancedValues, ValueBits)})");

    private string DescribeLayers() => string.Create(
        CultureInfo.InvariantCulture,
        $"{Layers!.Count} layers with separate settings; on average keys {KeySparsity:P1}, {KeyBits:0.#} bits, values {ValueSparsity:P1}, {ValueBits:0.#} bits");

    private static string Stored(string selection, bool balanced, double bits) =>
        (selection == Mustafar.KeySelection.Magnitude.Name ? "" : $", {selection}") + (balanced ? ", balanced" : "") + (bits < 16 ? string.Create(CultureInfo.InvariantCulture, $", {bits} bits") : "");
}

/// <summary>The formats of one layer's keys and values, as text.</summary>
internal sealed record LayerReport(string Keys, string Values)
{
    /// <summary>Describes a layer.</summary>
    public static LayerReport Of(MustafarOptions options, int headDim) => new(
        OperandCandidate.Describe(options, keys: true, headDim), OperandCandidate.Describe(options, keys: false, headDim));
}

/// <summary>The memory of a cache, in bytes: reserved in total and in its two parts, and how much of it is in use.</summary>
internal sealed record MemoryReport(
    int Tokens, long CacheBytes, long UsedBytes, long CompressedBytes, long WindowBytes, long DenseBytes, long DenseFp16Bytes, double RatioToFp16)
{
    /// <summary>Describes a cache.</summary>
    public static MemoryReport Of(ModelCache cache) => Of(cache.Length, cache.Memory);

    /// <summary>Describes a cache.</summary>
    public static MemoryReport Of(int tokens, KeyValueCacheMemory memory) => new(
        tokens,
        memory.TotalBytes,
        memory.UsedBytes,
        memory.CompressedBytes,
        memory.WindowBytes,
        memory.DenseBytes,
        memory.Fp16Bytes,
        Math.Round(memory.RatioToFp16, 4));

    /// <summary>The memory as text.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{CacheBytes:N0} bytes reserved ({UsedBytes:N0} in use) for {Tokens} tokens, {RatioToFp16:P1} of {DenseFp16Bytes:N0} in dense fp16");
}
