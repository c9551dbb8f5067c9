using System.Text.Json.Nodes;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Llama;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class CheckpointTests
{
    private const string Index = "model.safetensors.index.json";
    private const string SecondShard = "model-00002-of-00002.safetensors";

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void CopyCheckpoint() => _directory = new TemporaryDirectory().With(Golden.Checkpoint);

    [TearDown]
    public void DeleteCheckpoint() => _directory.Dispose();

    [Test]
    public void RefusesATruncatedShard()
    {
        using (FileStream shard = File.OpenWrite(_directory.File(SecondShard)))
        {
            shard.SetLength(shard.Length - 1);
        }

        Assert.That(Open, Throws.TypeOf<CheckpointException>().With.Message.Contains(SecondShard).And.Message.Contains("truncated"));
    }

    [Test]
    public void RefusesAMissingShard()
    {
        File.Delete(_directory.File(SecondShard));
        Assert.That(Open, Throws.TypeOf<FileNotFoundException>().With.Message.Contains(SecondShard));
    }

    [Test]
    public void RefusesATensorThatIsMissingFromItsShard()
    {
        ChangeIndex(map => map["model.layers.9.self_attn.q_proj.weight"] = SecondShard);
        Assert.That(Open, Throws.TypeOf<CheckpointException>().With.Message.Contains("model.layers.9.self_attn.q_proj.weight")
            .And.Message.Contains(SecondShard));
    }

    [Test]
    public void RefusesAShardOutsideTheDirectory()
    {
        ChangeIndex(map => map["model.norm.weight"] = "../" + SecondShard);
        Assert.That(Open, Throws.TypeOf<CheckpointException>().With.Message.Contains("../"));
    }

    [Test]
    public void RefusesADirectoryWithoutWeights()
    {
        File.Delete(_directory.File(Index));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Open, Throws.TypeOf<FileNotFoundException>().With.Message.Contains("model.safetensors"));
            Assert.That(
                () => SafetensorsCheckpoint.Open(_directory.File("none")), Throws.TypeOf<DirectoryNotFoundException>());
        }
    }

    [Test]
    public void NamesParametersThatTheCheckpointLacks()
    {
        ChangeIndex(map => map.Remove("model.layers.3.mlp.up_proj.weight"));
        using LlamaForCausalLM model = new(LlamaConfig.Load(_directory.File("config.json")), ScalarType.Float32);
        using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(_directory.Path);
        Assert.That(
            () => CheckpointLoader.Load(model, checkpoint),
            Throws.TypeOf<CheckpointException>().With.Message.Contains("model.layers.3.mlp.up_proj.weight").And.Message.Contains("1 are missing"));
    }

    [Test]
    public void ReturnsTensorsThatTheModelDoesNotUse()
    {
        LlamaConfig config = LlamaConfig.Load(_directory.File("config.json")) with { NumLayers = 5 };
        using LlamaForCausalLM model = new(config, ScalarType.Float32);
        using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(_directory.Path);
        IReadOnlyList<string> unused = CheckpointLoader.Load(model, checkpoint);
        Assert.That(unused, Has.Count.EqualTo(9).And.All.StartsWith("model.layers.5."));
    }

    [Test]
    public void RefusesAnotherShapeAndLeavesTheModelAsItWas()
    {
        LlamaConfig config = LlamaConfig.Load(_directory.File("config.json")) with { IntermediateSize = 512 };
        using LlamaForCausalLM model = new(config, ScalarType.Float32);
        using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(_directory.Path);
        foreach (Parameter parameter in model.parameters())
        {
            using IDisposable noGrad = no_grad();
            parameter.fill_(7);
        }

        using (Assert.EnterMultipleScope())
        {
            Assert.That(
                () => CheckpointLoader.Load(model, checkpoint),
                Throws.TypeOf<CheckpointException>().With.Message.Contains("[512, 384]").And.Message.Contains("[1024, 384]"));
            Assert.That(model.parameters().All(parameter => parameter.eq(7).all().item<bool>()));
        }
    }

    [Test]
    public void ConvertsTypesAndReportsProgress()
    {
        LlamaConfig config = LlamaConfig.Load(_directory.File("config.json"));
        using LlamaForCausalLM asStored = new(config, ScalarType.BFloat16);
        using LlamaForCausalLM converted = new(config, ScalarType.Float32);
        using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(_directory.Path);
        Progress progress = new();
        CheckpointLoader.Load(asStored, checkpoint);
        CheckpointLoader.Load(converted, checkpoint, progress);
        Dictionary<string, Tensor> expected = asStored.state_dict();
        using DisposeScope scope = NewDisposeScope();
        using (Assert.EnterMultipleScope())
        {
            foreach ((string name, Tensor weight) in converted.state_dict())
            {
                Assert.That(weight.dtype, Is.EqualTo(ScalarType.Float32));
                Assert.That(weight.equal(expected[name].to(ScalarType.Float32)).all().item<bool>(), name);
            }

            Assert.That(progress.Reports, Is.Ordered);
            Assert.That(progress.Reports[^1], Is.EqualTo(1).Within(1e-12));
        }
    }

    [Test]
    public void StopsWhenCancelled()
    {
        using LlamaForCausalLM model = new(LlamaConfig.Load(_directory.File("config.json")), ScalarType.Float32);
        using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(_directory.Path);
        Assert.That(
            () => CheckpointLoader.Load(model, checkpoint, cancellationToken: new CancellationToken(canceled: true)),
            Throws.InstanceOf<OperationCanceledException>());
    }

    private void Open() => SafetensorsCheckpoint.Open(_directory.Path).Dispose();

    private void ChangeIndex(Action<JsonObject> change)
    {
        JsonNode root = JsonNode.Parse(File.ReadAllText(_directory.File(Index)))!;
        change(root["weight_map"]!.AsObject());
        File.WriteAllText(_directory.File(Index), root.ToJsonString());
    }

    private sealed class Progress : IProgress<double>
    {
        public List<double> Reports { get; } = [];

        public void Report(double value) => Reports.Add(value);
    }
}
