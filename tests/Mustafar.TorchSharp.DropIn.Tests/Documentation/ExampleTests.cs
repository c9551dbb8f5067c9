using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.DropIn.Models.GenAI;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>The examples of the drop-in's XML comments, as they show them.</summary>
[TestFixture]
internal sealed class ExampleTests
{
    [Test]
    public void What_is_shown_is_run_here() => ShownCode.AssertExamplesAreRun(
        "managed/Mustafar.TorchSharp.DropIn",
        "tests/Mustafar.TorchSharp.DropIn.Tests/Documentation/ExampleTests.cs",
        nameof(MustafarModuleExtensions));

    [Test]
    public void AnExistingModel()
    {
        using var scope = NewDisposeScope();
        using IDisposable noGrad = no_grad();
        using LlamaForCausalLM model = new(heads: 4, kvHeads: 2);

        model.eval();
        using (MustafarAttachment attached = model.UseMustafar(new MustafarOptions { KeySparsity = 0.5, ValueSparsity = 0.7 }))
        {
            Generate(model);
            Console.WriteLine($"{attached.Layers} layers, {attached.Memory}");
            Assert.That(attached.Memory.CompressedBytes, Is.Positive);
        }

        Generate(model);
    }

    private static void Generate(LlamaForCausalLM model)
    {
        DynamicKVCache cache = new();
        Tensor ids = Subject.Ids(1, 120, seed: 1);
        model.Logits(ids, 0, cache, LlamaForCausalLM.CausalMask(ids, 0));
        Assert.That(cache.GetSeqLen(), Is.EqualTo(120));
    }
}
