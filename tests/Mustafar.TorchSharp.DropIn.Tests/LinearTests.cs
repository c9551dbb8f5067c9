using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.DropIn.Models.GenAI;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>Linear layers that run in the data type of their weights, and projections that are one product.</summary>
[TestFixture]
public sealed class LinearTests : TensorFixture
{
    private const int Prompt = 50;
    private const int Tokens = 75;

    // Four in each layer's attention or two with one for queries, keys and values, three in its feed-forward part, and the head.
    private const int Separate = (7 * Subject.Layers) + 1;
    private const int Joint = (5 * Subject.Layers) + 1;

    private static readonly MustafarOptions s_everything = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 8, GroupSize = 32 };

    [TestCase("genai", Separate)]
    [TestCase("genai-joint", Joint)]
    [TestCase("genai-phi3", Joint)]
    [TestCase("llm-sharp", 0)]
    public void InSinglePrecisionTheyGiveTheSame(string name, int layers)
    {
        using Subject subject = Subject.Make(name);
        Tensor ids = Subject.Ids(2, Tokens, seed: 1);
        Tensor own = subject.Run(ids, Prompt);
        nn.Module[] before = [.. subject.Model.modules()];
        using (MustafarAttachment attachment = subject.Model.UseMustafar(s_everything, linearInWeightDType: true))
        {
            Assert.That((attachment.Layers, attachment.LinearLayers), Is.EqualTo((Subject.Layers, layers)));
            Compare.Close(subject.Run(ids, Prompt), own, 1e-4, 1e-4, "logits");
        }

        Assert.That(subject.Model.modules(), Is.EqualTo(before));
        Compare.Same(subject.Run(ids, Prompt), own, "own logits");
        using MustafarAttachment without = subject.Model.UseMustafar(s_everything);
        Assert.That(without.LinearLayers, Is.Zero, "it is off where it is not asked for");
    }

    [Test]
    public void AProductIsThatOfTheWeightsDataType([Values(ScalarType.BFloat16, ScalarType.Float16)] ScalarType dtype, [Values] bool bias)
    {
        random.manual_seed(5);
        using OneLinear model = new(dtype, bias);
        Tensor x = randn(3, 7, Subject.HeadDim);
        Tensor own = model.linear.forward(x);
        Dictionary<string, Tensor> state = model.linear.state_dict();
        Tensor expected = nn.functional.linear(x.to(dtype), state["weight"], bias ? state["bias"] : null);
        Assert.That(own.eq(expected).all().item<bool>(), Is.False, "in f32 the input is not rounded");
        using (MustafarAttachment attachment = model.UseMustafar(s_everything, linearInWeightDType: true))
        {
            Compare.Same(model.linear.forward(x.to(dtype)), expected, "output");
            Tensor ofSingle = model.linear.forward(x);
            Assert.That(ofSingle.dtype, Is.EqualTo(ScalarType.Float32), "the input's type stays");
            Compare.Same(ofSingle, expected.to(ScalarType.Float32), "input in f32");
        }

        Compare.Same(model.linear.forward(x), own, "own output");
    }

    [Test]
    public void QuantisedLayersAreLeftAlone([Values] bool whileAttached)
    {
        random.manual_seed(6);
        using OneLinear model = new(ScalarType.BFloat16, bias: true);
        using OneLinear plain = new(ScalarType.BFloat16, bias: true);
        plain.load_state_dict(model.state_dict());
        ((QuantizedLinear)plain.linear).Int8();
        Tensor x = randn(3, 7, Subject.HeadDim).to(ScalarType.BFloat16);
        Tensor expected = plain.linear.forward(x);
        if (!whileAttached)
        {
            ((QuantizedLinear)model.linear).Int8();
        }

        using (MustafarAttachment attachment = model.UseMustafar(s_everything, linearInWeightDType: true))
        {
            if (whileAttached)
            {
                ((QuantizedLinear)model.linear).Int8();
            }

            Compare.Same(model.linear.forward(x), expected, "output");
        }

        Compare.Same(model.linear.forward(x), expected, "own output");
        Assert.That(model.state_dict().Keys, Is.EqualTo(plain.state_dict().Keys));
    }

    [Test]
    public void HalfPrecisionIsAsNearToSinglePrecisionAsTheModelsOwn([Values("genai", "genai-joint")] string name)
    {
        using Subject single = Subject.Make(name);
        using Subject half = Subject.Make(name, dtype: ScalarType.BFloat16);
        half.Model.load_state_dict(single.Model.state_dict());
        single.Model.load_state_dict(half.Model.state_dict());
        Tensor ids = Subject.Ids(2, Tokens, seed: 3);
        Tensor exact = single.Run(ids, Prompt).to(ScalarType.Float64);
        double own = Compare.RelativeError(half.Run(ids, Prompt), exact);
        using MustafarAttachment attachment = half.Model.UseMustafar(s_everything, linearInWeightDType: true);
        Tensor actual = half.Run(ids, Prompt);
        Assert.That(own, Is.Positive);
        Assert.That(Compare.RelativeError(actual, exact), Is.LessThan(2 * own));
    }

    [Test]
    public void SeparateProjectionsAreOneProductOfTheSameWeights()
    {
        using Subject subject = Subject.Make("genai");
        Tensor x = randn(2, 5, 4 * Subject.HeadDim);
        Dictionary<string, Tensor> before = subject.Model.state_dict().ToDictionary(entry => entry.Key, entry => entry.Value.clone());
        nint[] handles = [.. subject.Model.state_dict().Values.Select(weight => weight.Handle)];
        using (MustafarAttachment attachment = subject.Model.UseMustafar(s_everything, linearInWeightDType: true))
        {
            Same();
            Compare.Close(Project(subject)!, Separately(subject, x), 1e-5, 1e-5, "projections");
            using Subject other = Subject.Make("genai");
            foreach (Tensor weight in other.Model.state_dict().Values)
            {
                using IDisposable noGrad = no_grad();
                weight.mul_(-1.25);
            }

            subject.Model.load_state_dict(other.Model.state_dict());
            Compare.Close(Project(subject)!, Separately(other, x), 1e-5, 1e-5, "other weights, loaded in place");
            subject.Model.load_state_dict(before);
        }

        Same();
        Assert.That(subject.Model.state_dict().Values.Select(weight => weight.storage_offset()), Is.All.Zero, "memory of their own");

        void Same()
        {
            Assert.That(subject.Model.state_dict().Values.Select(weight => weight.Handle), Is.EqualTo(handles));
            foreach ((string name, Tensor weight) in subject.Model.state_dict())
            {
                Compare.Same(weight, before[name], name);
            }
        }

        Tensor? Project(Subject of) => Layer(of).Projections!.Project(x);
    }

    [TestCase("convert")]
    [TestCase("quantise")]
    public void ProjectionsWithOtherWeightsAreTakenOneByOne(string how)
    {
        using Subject subject = Subject.Make("genai");
        using Subject other = Subject.Make("genai");
        Change(other);
        Tensor ids = Subject.Ids(2, Tokens, seed: 4);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything, linearInWeightDType: true);
        subject.Run(ids, Prompt);
        Assert.That(Layer(subject).Projections, Is.Not.Null);
        Change(subject);
        Assert.That(Layer(subject).Projections!.Project(randn(1, 1, 4 * Subject.HeadDim)), Is.Null);
        using MustafarAttachment ofOther = other.Model.UseMustafar(s_everything, linearInWeightDType: true);
        // The converted one takes the projections that it never joined as one product.
        double rounding = how == "convert" ? 0.05 : 1e-4;
        Compare.Close(subject.Run(ids, Prompt), other.Run(ids, Prompt), rounding, rounding, "logits");

        void Change(Subject subject)
        {
            if (how == "convert")
            {
                subject.Model.to(ScalarType.BFloat16);
                return;
            }

            foreach (Attention attention in subject.Attentions.Cast<Attention>())
            {
                ((QuantizedLinear)attention.named_children().Single(child => child.name == "k_proj").module).Int8();
            }
        }
    }

    private static AttentionLayer Layer(Subject subject) => (AttentionLayer)((IReplacedModule)subject.Attentions[0]).Replacement;

    private static Tensor Separately(Subject subject, Tensor x)
    {
        Dictionary<string, nn.Module> children =
            subject.Attentions[0].named_children().ToDictionary(child => child.name, child => child.module);
        string[] names = ["q_proj", "k_proj", "v_proj"];
        return cat([.. names.Select(name => ((nn.Module<Tensor, Tensor>)children[name]).forward(x))], -1);
    }

    /// <summary>One linear layer beside an attention that makes it a model.</summary>
    private sealed class OneLinear : nn.Module<Tensor, Tensor>
    {
        internal readonly GenAILinear linear;
        internal readonly Attention attention;

        internal OneLinear(ScalarType dtype, bool bias)
            : base(nameof(OneLinear))
        {
            linear = new QuantizedLinear(Subject.HeadDim, 40, dtype, bias);
            attention = new(0, 1, 1, Subject.HeadDim, dtype, useQkvProj: true, attentionDropout: 0);
            RegisterComponents();
        }

        public override Tensor forward(Tensor input) => linear.forward(input);
    }
}
