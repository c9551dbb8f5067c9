using FsCheck;
using FsCheck.Fluent;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Model;

/// <summary>The cache that a run begins with.</summary>
internal sealed record CacheSetup(string Device, ScalarType DType, int BatchSize, int NumKvHeads, int Group, int HeadDim, MustafarOptions Options)
{
    internal KeyValueShape KeyValueShape => new() { NumKvHeads = NumKvHeads, HeadDim = HeadDim };

    internal int NumHeads => NumKvHeads * Group;

    /// <summary>
    /// Any setup, with balanced patterns or without; with integers too if they are to be, and then with any patterns
    /// beside each other.
    /// </summary>
    internal static Gen<CacheSetup> Any(string device, bool balanced, bool integers) =>
        from dtype in Gen.Elements(ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16)
        from batch in Gen.Choose(1, 3)
        from heads in Gen.Choose(1, 2)
        from grouped in Gen.Choose(1, 3)
        from headDim in balanced ? Gen.Elements(64, 128, 256) : Gen.Elements(64, 80, 96, 128, 256)
        from options in AnyOptions(balanced, integers)
        let rotates = options.KeyRotation && headDim % 64 == 0
        select new CacheSetup(device, dtype, batch, heads, grouped, headDim, options with { KeyRotation = rotates });

    /// <summary>Simpler setups of the same kind.</summary>
    internal IEnumerable<CacheSetup> Shrink() => new[]
    {
        this with { DType = ScalarType.Float32 },
        this with { BatchSize = 1 },
        this with { NumKvHeads = 1 },
        this with { Group = 1 },
        this with { HeadDim = 64 },
        this with { Options = Options with { KeyRotation = false } },
        this with { Options = Options with { KeyBits = 16, KeyChannelScales = false, KeyRotation = false } },
        this with { Options = Options with { ValueBits = 16 } },
        this with { Options = Options with { SlidingWindow = null } },
        this with { Options = Options with { SinkTokens = 0 } },
        this with { Options = Options with { LocalWindow = 0 } },
        this with { Options = Options with { GroupSize = 32 } },
    }.Where(setup => setup != this);

    private static Gen<MustafarOptions> AnyOptions(bool balanced, bool integers) =>
        from patterns in !balanced ? Gen.Constant((false, false)) : integers ? Gen.Elements((true, true), (true, false), (false, true)) : Gen.Constant((true, true))
        from keySparsity in AnySparsity(patterns.Item1, integers)
        from valueSparsity in AnySparsity(patterns.Item2, integers)
        from keyBits in integers ? Gen.Elements(16, 8, 4) : Gen.Constant(16)
        from valueBits in integers ? Gen.Elements(16, 8, 4) : Gen.Constant(16)
        from scales in Gen.Elements(true, false)
        from rotation in Gen.Elements(true, false)
        from localWindow in Gen.Elements(0, 1, 7, 32, 40, 300)
        from groups in Gen.Elements(1, 1, 2, 3)
        from keptMultiple in Gen.Choose(1, 8)
        from slidingWindow in Gen.Elements<int?>(null, null, null, null, 1, 33, 100, 257)
        from sinkTokens in Gen.Elements(0, 0, 0, 1, 4, 45)
        select new MustafarOptions
        {
            KeySparsity = keySparsity,
            ValueSparsity = valueSparsity,
            KeyBits = keyBits,
            ValueBits = valueBits,
            KeyChannelScales = scales && keyBits < 16,
            KeyRotation = rotation && keyBits < 16 && keySparsity == 0,
            LocalWindow = localWindow,
            GroupSize = 32 * groups,
            KeptMultiple = keptMultiple,
            BalancedKeys = patterns.Item1,
            BalancedValues = patterns.Item2,
            SlidingWindow = slidingWindow,
            SinkTokens = sinkTokens,
        };

    private static Gen<double> AnySparsity(bool balanced, bool orNone) => Gen.Frequency(
        (orNone ? 1 : 0, Gen.Constant(0.0)), (3, from percent in Gen.Choose(balanced ? 50 : 0, 95) select percent / 100.0));
}
