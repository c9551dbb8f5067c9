using System.Globalization;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>What a run was made with. A sparsity is the share of a head's channels that was pruned in fact,
/// bits are those of a stored number.</summary>
internal sealed record RunReport(
    string Model,
    string Attention,
    double KeySparsity,
    double ValueSparsity,
    int KeysKept,
    int ValuesKept,
    int HeadDim,
    bool BalancedKeys,
    bool BalancedValues,
    string KeySelection,
    string ValueSelection,
    int KeyBits,
    int ValueBits,
    bool KeyChannelScales,
    bool KeyRotation,
    int? LocalWindow,
    int? Sinks,
    int? GroupSize,
    string Device,
    string Dtype,
    int Threads)
{
    /// <summary>Describes a session.</summary>
    public static RunReport Of(ModelSession session) => Of(session, session.Settings.Attention);

    /// <summary>Describes a session with a cache of a given kind.</summary>
    public static RunReport Of(ModelSession session, AttentionKind attention)
    {
        MustafarOptions? options = attention == AttentionKind.Mustafar ? session.Settings.Options : null;
        int headDim = session.Model.Config.HeadDim;
        int keysKept = options?.KeysKept(headDim) ?? headDim;
        int valuesKept = options?.ValuesKept(headDim) ?? headDim;
        int native = session.Model.DType == ScalarType.Float32 ? 32 : 16;
        return new RunReport(
            session.Settings.Model,
            attention == AttentionKind.Mustafar ? "mustafar" : "dense",
            1 - ((double)keysKept / headDim),
            1 - ((double)valuesKept / headDim),
            keysKept,
            valuesKept,
            headDim,
            options?.BalancedKeys ?? false,
            options?.BalancedValues ?? false,
            (options?.KeySelection ?? Mustafar.KeySelection.Magnitude).Name,
            (options?.ValueSelection ?? Mustafar.ValueSelection.Magnitude).Name,
            options is { KeyBits: < 16 } ? options.KeyBits : native,
            options is { ValueBits: < 16 } ? options.ValueBits : native,
            options?.KeyChannelScales ?? false,
            options?.KeyRotation ?? false,
            options?.LocalWindow,
            options?.SinkTokens,
            options?.GroupSize,
            session.Model.Device.ToString(),
            session.Model.DType switch
            {
                ScalarType.Float32 => "float32",
                ScalarType.Float16 => "float16",
                _ => "bfloat16",
            },
            get_num_threads());
    }

    /// <summary>The sparsity in words.</summary>
    public string DescribeSparsity() => string.Create(
        CultureInfo.InvariantCulture,
        $"keys {KeySparsity:P1} ({KeysKept} of {HeadDim} channels kept{Stored(KeySelection, BalancedKeys, KeyBits)}{(KeyChannelScales ? " with channel scales" : "")}{(KeyRotation ? ", rotated" : "")}), values {ValueSparsity:P1} ({ValuesKept} of {HeadDim} kept{Stored(ValueSelection, BalancedValues, ValueBits)})")
        + (Sinks > 0 ? $", first {Sinks} tokens dense" : "");

    private static string Stored(string selection, bool balanced, int bits) =>
        (selection == Mustafar.KeySelection.Magnitude.Name ? "" : $", chosen {selection}") + (balanced ? ", balanced" : "") + (bits < 16 ? $", {bits} bits" : "");
}

/// <summary>What a cache occupies, in bytes: reserved in all, the two parts of that, and what of it is in use.</summary>
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

    /// <summary>The memory in words.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{CacheBytes:N0} bytes reserved ({UsedBytes:N0} in use) for {Tokens} tokens, {RatioToFp16:P1} of {DenseFp16Bytes:N0} in dense fp16");
}
