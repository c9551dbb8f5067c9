using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.DropIn.Models.GenAI;
using Mustafar.Tests.DropIn.Models.LlmSharp;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>A user's own adapter, and models and calls that are refused.</summary>
[TestFixture]
public sealed class AdapterTests : TensorFixture
{
    private const double Scale = 0.2;

    private static readonly MustafarOptions s_everything = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 8, GroupSize = 32 };

    [SetUp]
    public void Seed() => random.manual_seed(3);

    [Test]
    public void AUsersAdapterReadsAUsersAttention()
    {
        using OwnModel model = new(() => new OwnAttention(heads: 2));
        OwnAttention own = model.single;
        Tensor x = randn(2, 60, 2 * Subject.HeadDim);
        (Tensor expected, int expectedLength) = Run(model.single, x);
        using MustafarAttachment attachment = model.UseMustafar(s_everything, new OwnAdapter());
        Assert.That(model.single, Is.Not.SameAs(own));
        (Tensor actual, int length) = Run(model.single, x);
        Assert.That(length, Is.EqualTo(expectedLength));
        Compare.Close(actual, expected, 1e-5, 1e-5, "output");
        Compare.Same(model.single.forward(x, null, Scale).Output, own.forward(x, null, Scale).Output, "a call without a cache");

        static (Tensor Output, int Length) Run(OwnAttention attention, Tensor x)
        {
            using IDisposable noGrad = no_grad();
            OwnCache cache = new();
            List<Tensor> outputs = [attention.call(x.narrow(1, 0, 40), cache, Scale).Output];
            for (int i = 40; i < 60; i++)
            {
                outputs.Add(attention.call(x.narrow(1, i, 1), cache, Scale).Output);
            }

            return (cat(outputs, 1), cache.Length);
        }
    }

    [Test]
    public void AttentionIsReplacedWhereverAModelHoldsIt()
    {
        using OwnModel model = new(() => new OwnAttention(heads: 1));
        OwnAttention[] before = model.All;
        string[] names = [.. model.named_modules().Select(module => module.name)];
        using (MustafarAttachment attachment = model.UseMustafar(null, new OwnAdapter()))
        {
            Assert.That(attachment.Layers, Is.EqualTo(before.Length));
            Assert.That(model.All, Has.Length.EqualTo(before.Length).And.All.AssignableTo<OwnAttention>());
            Assert.That(model.All.Intersect(before), Is.Empty);
            Assert.That(model.All, Is.SubsetOf(model.modules()));
            Assert.That(model.named_modules().Select(module => module.name), Is.EqualTo(names));
        }

        Assert.That(model.All, Is.EqualTo(before));
        Assert.That(model.named_modules().Select(module => module.name), Is.EqualTo(names));
    }

    [Test]
    public void AModelWithoutKnownAttentionIsRefused()
    {
        using nn.Module<Tensor, Tensor> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU());
        Assert.That(
            () => model.UseMustafar(),
            Throws.TypeOf<NotSupportedException>().With.Message.Contains("Sequential").And.Message.Contains("AttentionAdapter"));
        using OwnModel own = new(() => new OwnAttention(heads: 1));
        Assert.That(() => own.UseMustafar(), Throws.TypeOf<NotSupportedException>());
    }

    [Test]
    public void SealedAttentionIsRefusedAndTheModelStaysAsItWas()
    {
        foreach (Func<OwnAttention> make in (Func<OwnAttention>[])[() => new SealedAttention(), () => new FinalAttention()])
        {
            using OwnModel model = new(make);
            OwnAttention[] before = model.All;
            Assert.That(
                () => model.UseMustafar(null, new OwnAdapter()),
                Throws.TypeOf<NotSupportedException>().With.Message.Contains(before[0].GetType().Name).And.Message.Contains("sealed"));
            Assert.That(model.All, Is.EqualTo(before));
        }
    }

    [Test]
    public void ReplacingTwiceIsRefused([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        using (MustafarAttachment attachment = subject.Model.UseMustafar())
        {
            Assert.That(() => subject.Model.UseMustafar(), Throws.InvalidOperationException.With.Message.Contains("already replaced"));
        }

        using MustafarAttachment again = subject.Model.UseMustafar();
        Assert.That(again.Layers, Is.EqualTo(Subject.Layers));
    }

    [Test]
    public void AnAttentionModuleByItselfIsRefused()
    {
        using Subject subject = Subject.Make("llm-sharp");
        Assert.That(() => subject.Attentions[0].UseMustafar(), Throws.ArgumentException.With.Property("ParamName").EqualTo("model"));
    }

    [Test]
    public void NullIsRefused()
    {
        using Subject subject = Subject.Make("llm-sharp");
        Assert.That(() => ((nn.Module)null!).UseMustafar(), Throws.ArgumentNullException);
        Assert.That(() => subject.Model.UseMustafar(null, adapters: null!), Throws.ArgumentNullException);
    }

    [Test]
    public void DropoutIsRefusedInTraining()
    {
        Tensor ids = Subject.Ids(1, 10, seed: 1);
        using LlamaForCausalLM genAI = new(heads: 2, kvHeads: 1, dropout: 0.1);
        using Models.LlmSharp.LlamaModel llmSharp = new(heads: 2, kvHeads: 1, dropout: 0.1);
        using MustafarAttachment ofGenAI = genAI.UseMustafar();
        using MustafarAttachment ofLlmSharp = llmSharp.UseMustafar();
        Assert.That(CallGenAI, Throws.TypeOf<NotSupportedException>().With.Message.Contains("eval()"));
        Assert.That(CallLlmSharp, Throws.TypeOf<NotSupportedException>().With.Message.Contains("eval()"));
        genAI.eval();
        llmSharp.eval();
        Assert.That(CallGenAI, Throws.Nothing);
        Assert.That(CallLlmSharp, Throws.Nothing);

        void CallGenAI() => genAI.Logits(ids, 0, new DynamicKVCache(), LlamaForCausalLM.CausalMask(ids, 0));
        void CallLlmSharp() => llmSharp.forward(ids, [new KvCache(), new KvCache()]);
    }

    [Test]
    public void AttentionWeightsAreRefused()
    {
        using Subject subject = Subject.Make("genai");
        using MustafarAttachment attachment = subject.Model.UseMustafar();
        Tensor ids = Subject.Ids(1, 10, seed: 2);
        Assert.That(
            () => ((LlamaForCausalLM)subject.Model).Logits(
                ids, 0, new DynamicKVCache(), LlamaForCausalLM.CausalMask(ids, 0), outputAttentions: true),
            Throws.TypeOf<NotSupportedException>().With.Message.Contains("OutputAttentions"));
    }

    [Test]
    public void KeysOfAnotherTypeAreRefused()
    {
        using OwnModel model = new(() => new OwnAttention(heads: 1));
        using MustafarAttachment attachment = model.UseMustafar(null, new OwnAdapter());
        model.single.to(ScalarType.Float64);
        Assert.That(
            () => model.single.forward(randn(1, 4, Subject.HeadDim, dtype: ScalarType.Float64), new OwnCache(), Scale),
            Throws.TypeOf<NotSupportedException>().With.Message.Contains("Float64"));
    }
}
