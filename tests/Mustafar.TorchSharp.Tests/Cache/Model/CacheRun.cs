using FsCheck;
using FsCheck.Fluent;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Model;

/// <summary>A cache and what is done with it and its forks.</summary>
internal sealed record CacheRun(CacheSetup Setup, CacheOperation[] Operations)
{
    private const int FewestOperations = 5;
    private const int MostOperations = 20;

    /// <summary>Any run; one that fails is made shorter and simpler as long as it fails.</summary>
    internal static Arbitrary<CacheRun> Any(string device, bool balanced, bool integers) => Arb.From(
        from setup in CacheSetup.Any(device, balanced, integers)
        from count in Gen.Choose(FewestOperations, MostOperations)
        from operations in Gen.ArrayOf(AnyOperation, count)
        select new CacheRun(setup, operations),
        run => run.Shrink());

    /// <summary>After each operation every cache must be what its lists of tokens say.</summary>
    internal void Check()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        List<CacheAndModel> caches = [];
        try
        {
            caches.Add(new CacheAndModel(
                Setup,
                new MustafarCache(Setup.BatchSize, Setup.KeyValueShape, Setup.DType, new Device(Setup.Device), Setup.Options),
                new ReferenceCache(Setup.BatchSize, Setup.Options, Setup.HeadDim)));
            foreach (CacheOperation operation in Operations)
            {
                operation.Run(caches);
                caches.ForEach(cache => cache.Check());
            }
        }
        finally
        {
            caches.ForEach(cache => cache.Cache.Dispose());
        }
    }

    public override string ToString() => $"{Setup}{string.Concat(Operations.Select(operation => $"\n  {operation}"))}";

    private static Gen<CacheOperation> AnyOperation
    {
        get
        {
            Gen<int> which = Gen.Choose(0, 5);
            Gen<int> share = Gen.OneOf(Gen.Choose(0, 100), Gen.Choose(60, 100));
            Gen<int[]> shares = Gen.ArrayOf(share, 3);
            // One token, several for the decode kernel, a chunk, a long one.
            Gen<int> tokens = Gen.OneOf(Gen.Constant(1), Gen.Choose(2, 8), Gen.Choose(9, 49), Gen.Choose(50, 120));
            Gen<int[]> padding = Gen.OneOf(Gen.Constant(Array.Empty<int>()), shares);
            return Gen.Frequency(
                (6, from w in which from t in tokens from s in padding select (CacheOperation)new CacheOperation.Forward(w, t, s)),
                (3, from w in which from t in tokens from s in padding select (CacheOperation)new CacheOperation.Append(w, t, s)),
                (1, from w in which from q in Gen.Choose(1, 40) select (CacheOperation)new CacheOperation.Attend(w, q)),
                (2, from w in which from s in shares select (CacheOperation)new CacheOperation.Truncate(w, s)),
                (1, from w in which from s in share select (CacheOperation)new CacheOperation.TruncateAll(w, s)),
                (1, from w in which select (CacheOperation)new CacheOperation.Clear(w)),
                (3, from w in which from n in Gen.Choose(1, 3) from p in Gen.ArrayOf(Gen.Choose(0, 5), n) select (CacheOperation)new CacheOperation.Fork(w, p)),
                (2, from w in which select (CacheOperation)new CacheOperation.SaveAndLoad(w)),
                (1, from w in which select (CacheOperation)new CacheOperation.Dispose(w)));
        }
    }

    // Without one half, without one operation, with one simpler operation, with a simpler setup.
    private IEnumerable<CacheRun> Shrink()
    {
        int half = Operations.Length / 2;
        if (half > 0)
        {
            yield return this with { Operations = Operations[..half] };
            yield return this with { Operations = Operations[half..] };
        }

        for (int i = 0; i < Operations.Length; i++)
        {
            yield return this with { Operations = [.. Operations[..i], .. Operations[(i + 1)..]] };
        }

        for (int i = 0; i < Operations.Length; i++)
        {
            foreach (CacheOperation simpler in Operations[i].Shrink())
            {
                yield return this with { Operations = [.. Operations[..i], simpler, .. Operations[(i + 1)..]] };
            }
        }

        foreach (CacheSetup simpler in Setup.Shrink())
        {
            yield return this with { Setup = simpler };
        }
    }
}
