using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Model;

/// <summary>A cache and the lists of tokens that say what it must be: both take each step, and every answer is compared.</summary>
internal sealed record CacheAndModel(CacheSetup Setup, MustafarCache Cache, ReferenceCache Model)
{
    private double Scale => 1 / Math.Sqrt(Setup.HeadDim);

    internal void Append(int tokens, int[] shares)
    {
        (Tensor keys, Tensor values) = (Random(Setup.NumKvHeads, tokens), Random(Setup.NumKvHeads, tokens));
        int[] counts = Counts(tokens, shares);
        Cache.Append(keys, values, shares.Length == 0 ? [] : counts);
        Model.Append(keys, values, counts);
    }

    internal void Forward(int tokens, int[] shares)
    {
        (Tensor keys, Tensor values) = (Random(Setup.NumKvHeads, tokens), Random(Setup.NumKvHeads, tokens));
        Tensor query = Random(Setup.NumHeads, tokens);
        int[] counts = Counts(tokens, shares);
        Tensor output = Cache.Forward(query, keys, values, counts: shares.Length == 0 ? [] : counts);
        Close(output, Model.Forward(query, keys, values, Scale, counts), $"{tokens} tokens, of which {string.Join(",", counts)}");
    }

    internal void Attend(int queries)
    {
        Tensor query = Random(Setup.NumHeads, queries);
        if (Model.RefusesToAttend(queries))
        {
            Assert.That(() => Cache.Attend(query), Throws.InvalidOperationException.With.Message.Contains("sliding window"));
        }
        else
        {
            Close(Cache.Attend(query), Model.Attend(query, Scale), $"{queries} queries");
        }
    }

    internal void Truncate(int[] shares)
    {
        int[] lengths = [.. Model.Lengths.Select((length, b) => length * Of(shares, b) / 100)];
        Truncate(lengths, () => Cache.Truncate(lengths));
    }

    internal void TruncateAll(int share)
    {
        int length = Cache.Length * share / 100;
        Truncate([.. Model.Lengths.Select(own => Math.Min(own, length))], () => Cache.Truncate(length));
    }

    internal void Clear() => Truncate(new int[Model.Batch], Cache.Clear);

    internal CacheAndModel Fork(int[] parents)
    {
        parents = [.. parents.Select(parent => parent % Model.Batch)];
        return this with { Cache = Cache.Fork(parents), Model = Model.Fork(parents) };
    }

    /// <summary>The same with a cache that was restored from a file.</summary>
    internal CacheAndModel SaveAndLoad()
    {
        using TemporaryDirectory directory = new();
        Cache.Save(directory.File("cache"), "model");
        MustafarCache restored = new(Model.Batch, Setup.KeyValueShape, Setup.DType, Cache.Device, Setup.Options);
        restored.Load(directory.File("cache"), "model");
        return this with { Cache = restored };
    }

    internal void Check()
    {
        Assert.That(Cache.Lengths, Is.EqualTo(Model.Lengths), "lengths");
        Assert.That(Cache.CompressedLengths, Is.EqualTo(Model.Compressed), "compressed tokens");
        Attend(1);
    }

    private void Truncate(int[] lengths, Action truncate)
    {
        if (Model.RefusesToTruncate(lengths))
        {
            Assert.That(() => truncate(), Throws.InvalidOperationException.With.Message.Contains("sliding window"));
        }
        else
        {
            truncate();
            Model.Truncate(lengths);
        }
    }

    private void Close(Tensor actual, Tensor expected, string what)
    {
        double tolerance = Compare.AttentionTolerance(Setup.DType);
        Compare.Close(actual, expected, tolerance, tolerance, what);
    }

    private Tensor Random(int heads, int tokens) =>
        randn(Model.Batch, heads, tokens, Setup.HeadDim).to(Setup.DType).to(Cache.Device);

    private int[] Counts(int tokens, int[] shares) =>
        [.. Enumerable.Range(0, Model.Batch).Select(b => shares.Length == 0 ? tokens : tokens * Of(shares, b) / 100)];

    // Percent; a fork may have more sequences than there are shares.
    private static int Of(int[] shares, int sequence) => shares[sequence % shares.Length];
}
