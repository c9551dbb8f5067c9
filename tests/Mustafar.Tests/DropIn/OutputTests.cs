using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>What replaced models compute.</summary>
[TestFixture]
public sealed class OutputTests
{
    // Everything kept: the compressed form holds the same numbers. f32 sums of 100 products in another order, through two layers.
    private const double Rounding = 1e-4;

    private static readonly MustafarOptions s_everything = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 8, GroupSize = 32 };

    private DisposeScope _scope = null!;

    [SetUp]
    public void OpenScope() => _scope = NewDisposeScope();

    [TearDown]
    public void CloseScope() => _scope.Dispose();

    [Test]
    public void WithEverythingKeptLogitsAreTheModelsOwn(
        [ValueSource(typeof(Subject), nameof(Subject.Names))] string name, [Values(1, 2, 4)] int kvHeads, [Values(1, 2)] int batch)
    {
        using Subject subject = Subject.Make(name, kvHeads: kvHeads);
        Tensor ids = Subject.Ids(batch, 75, seed: 1);
        Tensor expected = subject.Run(ids, prompt: 50);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything);
        Tensor actual = subject.Run(ids, prompt: 50);
        Compare.Close(actual, expected, Rounding, Rounding, name);
        Assert.That(attachment.Layers, Is.EqualTo(Subject.Layers));
        Assert.That(attachment.Memory.CompressedBytes, Is.Positive);
    }
}
