using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Sequences;

/// <summary>Which changes of a model move what a captured step reads.</summary>
[TestFixture]
internal sealed class CapturedWeightsTests : TensorFixture
{
    private static IEnumerable<TestCaseData> Moves()
    {
        yield return Case("conversion", "layers.0.weight", model => model.to(ScalarType.BFloat16));
        yield return Case("another parameter", "layers.1.bias", model => ((Linear)model.layers[1]).bias = new Parameter(zeros(4)));
        yield return Case("a parameter's other memory", "layers.1.weight", model => ((Linear)model.layers[1]).weight!.set_(zeros(4, 4)));
        yield return Case("another buffer", "table", model => model.SetTable(zeros(3)));
        yield return Case("another module", "layers", model => model.layers[0] = nn.Linear(4, 4));
        yield return Case("one module more", "layers", model => model.layers.Add(nn.Linear(4, 4)));
        yield return Case("one parameter more", "", model => model.register_parameter("more", new Parameter(zeros(3))));
        yield return Case("disposal", "layers.0.weight", model => model.layers[0].Dispose());

        static TestCaseData Case(string name, string moved, Action<Model> change) => new TestCaseData(moved, change).SetArgDisplayNames(name);
    }

    [TestCaseSource(nameof(Moves))]
    public void A_move_is_found_and_named(string moved, Action<Model> change)
    {
        using IDisposable noGrad = no_grad();
        using Model model = new();
        CapturedWeights weights = new(model);
        Assert.That(weights.FindMoved(), Is.Null);
        change(model);
        Assert.That(weights.FindMoved(), Is.EqualTo(moved));
        Assert.That(new CapturedWeights(model).FindMoved(), Is.Null);
    }

    [Test]
    public void Other_numbers_in_the_same_place_are_no_move()
    {
        using IDisposable noGrad = no_grad();
        using Model model = new(), other = new();
        CapturedWeights weights = new(model);
        model.load_state_dict(other.state_dict());
        model.eval();
        model.train();
        model.to(ScalarType.Float32);
        model.to(CPU);
        model.table.fill_(5);
        model.forward(zeros(2, 4));
        Assert.That(weights.FindMoved(), Is.Null);
    }

    [Test]
    public void A_module_in_two_places_is_looked_at_once()
    {
        using Linear shared = nn.Linear(4, 4);
        using Sequential model = nn.Sequential(("first", shared), ("second", shared));
        CapturedWeights weights = new(model);
        Assert.That(weights.FindMoved(), Is.Null);
        shared.weight = new Parameter(zeros(4, 4));
        Assert.That(weights.FindMoved(), Is.EqualTo("first.weight"));
    }

    internal sealed class Model : nn.Module<Tensor, Tensor>
    {
#pragma warning disable IDE1006 // the fields' names are those of the state dictionary
        internal readonly ModuleList<nn.Module<Tensor, Tensor>> layers = new(nn.Linear(4, 4), nn.Linear(4, 4, hasBias: true));
        internal Tensor table = arange(3);
#pragma warning restore IDE1006

        internal Model()
            : base(nameof(Model)) => RegisterComponents();

        internal void SetTable(Tensor other)
        {
            table = other;
            _internal_buffers["table"] = (other, true);
        }

        public override Tensor forward(Tensor input) => layers.Aggregate(input, (x, layer) => layer.forward(x));
    }
}
