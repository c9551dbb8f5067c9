using System.Collections;
using System.Reflection;
using System.Runtime.CompilerServices;
using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>A model with replaced attention is the same model to everyone else, and afterwards it is as it was.</summary>
[TestFixture]
public sealed class ModuleTests : TensorFixture
{
    private const int Prompt = 50;
    private const int Tokens = 60;

    private static readonly MustafarOptions s_options = new() { LocalWindow = 8, GroupSize = 32 };

    [Test]
    public void DisposingPutsTheModelsOwnAttentionBack([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        Tensor ids = Subject.Ids(2, Tokens, seed: 1);
        Tensor expected = subject.Run(ids, Prompt);
        nn.Module[] own = subject.Attentions;
        nn.Module[] others = [.. subject.Model.modules().Where(module =>
            module is Models.GenAI.LlamaModel or Models.GenAI.LlamaDecoderLayer or Models.GenAI.LlamaMLP or Models.GenAI.RMSNorm)];
        Dictionary<string, object?> before = Fields(subject.Model);
        MustafarAttachment attachment = subject.Model.UseMustafar(s_options);
        nn.Module[] replaced = subject.Attentions;
        Assert.That(replaced, Has.Length.EqualTo(Subject.Layers));
        Assert.That(replaced.Intersect(own), Is.Empty);
        Assert.That(replaced.Select(module => module.GetType().BaseType), Is.EqualTo(own.Select(module => module.GetType())));
        // Only where the model holds attention, modules of single tokens, decoder layers or what keeps the cache of the current call, there is
        // another object.
        Dictionary<string, object?> during = Fields(subject.Model);
        Assert.That(during.Keys, Is.SupersetOf(before.Keys));
        object?[] changed = [.. before.Where(field => !ReferenceEquals(field.Value, during[field.Key])).Select(field => field.Value)];
        Assert.That(changed.Distinct(), Is.EquivalentTo(own.Concat(others)));
        Tensor pruned = subject.Run(ids, Prompt);
        Assert.That(Compare.RelativeError(pruned, expected.to(ScalarType.Float64)), Is.GreaterThan(1e-3));

        attachment.Dispose();
        Dictionary<string, object?> after = Fields(subject.Model);
        Assert.That(after.Keys, Is.EqualTo(before.Keys));
        Assert.That(after.Where(field => !ReferenceEquals(field.Value, before[field.Key])), Is.Empty);
        Assert.That(subject.Attentions, Is.EqualTo(own));
        Compare.Same(subject.Run(ids, Prompt), expected, "logits");
        Assert.That(attachment.Memory.CompressedBytes, Is.Zero);
        Assert.That(attachment.Dispose, Throws.Nothing);
        Assert.That(subject.Attentions, Is.EqualTo(own));
    }

    [Test]
    public void AReplacementThatSomebodyKeptRunsTheModelsOwnAttention()
    {
        using Subject subject = Subject.Make("llm-sharp");
        Models.LlmSharp.LlamaAttention own = (Models.LlmSharp.LlamaAttention)subject.Attentions[0];
        Models.LlmSharp.LlamaAttention kept;
        using (MustafarAttachment attachment = subject.Model.UseMustafar(s_options))
        {
            kept = (Models.LlmSharp.LlamaAttention)subject.Attentions[0];
        }

        Tensor x = randn(1, 10, 4 * Subject.HeadDim);
        using Models.LlmSharp.KvCache one = new(), two = new();
        Compare.Same(kept.forward(x, null, null, one), own.forward(x, null, null, two), "output");
    }

    [Test]
    public void StateAndNamesAreAsBefore([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        string[] before = Describe(subject.Model);
        using (MustafarAttachment attachment = subject.Model.UseMustafar(s_options))
        {
            Assert.That(Describe(subject.Model), Is.EqualTo(before));
            subject.Run(Subject.Ids(1, Tokens, seed: 2), Prompt);
            Assert.That(Describe(subject.Model), Is.EqualTo(before));
        }

        Assert.That(Describe(subject.Model), Is.EqualTo(before));
    }

    [Test]
    public void WeightsAreShared([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        using Subject other = Subject.Make(name);
        foreach (Tensor weight in other.Model.state_dict().Values)
        {
            using IDisposable noGrad = no_grad();
            weight.mul_(1.25);
        }

        Tensor ids = Subject.Ids(1, Tokens, seed: 3);
        Tensor own = other.Run(ids, Prompt);
        Dictionary<string, Tensor> before = subject.Model.state_dict();
        using (MustafarAttachment attachment = subject.Model.UseMustafar(s_options))
        using (MustafarAttachment ofOther = other.Model.UseMustafar(s_options))
        {
            Assert.That(
                subject.Model.state_dict().Values.Select(weight => weight.Handle), Is.EqualTo(before.Values.Select(weight => weight.Handle)));
            subject.Model.load_state_dict(other.Model.state_dict());
            Compare.Same(subject.Run(ids, Prompt), other.Run(ids, Prompt), "pruned logits");
        }

        Compare.Same(subject.Run(ids, Prompt), own, "own logits");
    }

    [Test]
    public void ConversionsReachTheModelsOwnAttention(
        [ValueSource(typeof(Subject), nameof(Subject.Names))] string name, [Values] bool withDevice)
    {
        using Subject subject = Subject.Make(name);
        using Subject plain = Subject.Make(name);
        nn.Module[] own = subject.Attentions;
        using (MustafarAttachment attachment = subject.Model.UseMustafar(s_options))
        {
            Convert(subject.Attentions);
            Convert(plain.Attentions);
            Assert.That(Describe(subject.Model), Is.EqualTo(Describe(plain.Model)));
            Assert.That(subject.Attentions.Select(OwnTensors), Is.EqualTo(plain.Attentions.Select(OwnTensors)));
        }

        Assert.That(own.Select(OwnTensors), Is.EqualTo(plain.Attentions.Select(OwnTensors)));
        Assert.That(own[0].state_dict().Values.Select(weight => weight.dtype), Is.All.EqualTo(ScalarType.BFloat16));

        void Convert(nn.Module[] modules)
        {
            foreach (nn.Module module in modules)
            {
                _ = withDevice ? module.to(CPU, ScalarType.BFloat16) : module.to(ScalarType.BFloat16);
            }
        }
    }

    [Test]
    public void ConversionsReachParametersOfTheAttentionItself([Values] bool withDevice)
    {
        using OwnModel model = new(() => new OwnAttention(heads: 1));
        OwnAttention own = model.single;
        Tensor x = randn(1, 40, Subject.HeadDim);
        using (MustafarAttachment attachment = model.UseMustafar(s_options, new OwnAdapter()))
        {
            Tensor before = model.single.forward(x, new OwnCache(), 0.1).Output;
            _ = withDevice ? model.single.to(CPU, ScalarType.BFloat16) : model.single.to(ScalarType.BFloat16);
            Assert.That(OwnTensors(model.single), Is.EqualTo(OwnTensors(own)).And.All.Contains("BFloat16"));
            Assert.That(model.single.state_dict().Values.Select(tensor => tensor.dtype), Is.All.EqualTo(ScalarType.BFloat16));
            Tensor after = model.single.forward(x.to(ScalarType.BFloat16), new OwnCache(), 0.1).Output;
            Compare.Close(after, before.to(ScalarType.Float64), 0.05, 0.05, "output");
        }

        Assert.That(OwnTensors(own), Has.Length.EqualTo(2).And.All.Contains("BFloat16"));
        Assert.That(own.forward(x.to(ScalarType.BFloat16), null, 0.1).Output.dtype, Is.EqualTo(ScalarType.BFloat16));
    }

    [Test]
    public void AModelRunsAfterAConversion([ValueSource(typeof(Subject), nameof(Subject.WithCacheObjects))] string name)
    {
        using Subject converted = Subject.Make(name);
        using Subject half = Subject.Make(name, dtype: ScalarType.BFloat16);
        half.Model.load_state_dict(converted.Model.state_dict());
        Tensor ids = Subject.Ids(1, Tokens, seed: 4);
        Tensor expected = half.Run(ids, Prompt);
        using (MustafarAttachment attachment = converted.Model.UseMustafar(s_options))
        using (MustafarAttachment ofHalf = half.Model.UseMustafar(s_options))
        {
            converted.Model.to(ScalarType.BFloat16);
            Compare.Same(converted.Run(ids, Prompt), half.Run(ids, Prompt), "pruned logits");
        }

        Compare.Same(converted.Run(ids, Prompt), expected, "own logits");
    }

    [Test]
    public void TrainingAndEvaluationAreTheModelsOwn([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        nn.Module[] own = subject.Attentions;
        MustafarAttachment attachment = subject.Model.UseMustafar(s_options);
        subject.Model.train();
        Assert.That(subject.Attentions.Concat(own).Select(module => module.training), Is.All.True);
        subject.Model.eval();
        Assert.That(subject.Attentions.Concat(own).Select(module => module.training), Is.All.False);
        subject.Model.train();
        attachment.Dispose();
        Assert.That(own.Select(module => module.training), Is.All.True);
    }

    [Test]
    public void HooksRunOnReplacedAttentionToo()
    {
        using Subject subject = Subject.Make("llm-sharp");
        int calls = 0;
        Models.LlmSharp.LlamaAttention own = (Models.LlmSharp.LlamaAttention)subject.Attentions[0];
        own.register_forward_hook((_, _, _, _, _, output) =>
        {
            calls++;
            return output;
        });
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_options);
        subject.Run(Subject.Ids(1, Prompt + 5, seed: 5), Prompt);
        Assert.That(calls, Is.EqualTo(6));
    }

    [Test]
    public void TheModelMayBeDisposedFirst([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        Subject subject = Subject.Make(name);
        MustafarAttachment attachment = subject.Model.UseMustafar(s_options);
        subject.Run(Subject.Ids(1, Tokens, seed: 6), Prompt);
        subject.Dispose();
        Assert.That(attachment.Dispose, Throws.Nothing);
        Assert.That(subject.Dispose, Throws.Nothing);
        ConversationTests.Collect();
    }

    [Test]
    public void GarbageCollectionsTakeNothingThatIsInUse([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        Tensor ids = Subject.Ids(1, Tokens, seed: 7);
        Tensor own = subject.Run(ids, Prompt);
        Tensor? expected = null;
        for (int round = 0; round < 2; round++)
        {
            using (MustafarAttachment attachment = subject.Model.UseMustafar(s_options))
            {
                ConversationTests.Collect();
                object conversation = subject.NewConversation();
                List<Tensor> logits = [subject.Step(ids, 0, Prompt, conversation)];
                for (int i = Prompt; i < Tokens; i++)
                {
                    ConversationTests.Collect();
                    logits.Add(subject.Step(ids, i, i + 1, conversation));
                }

                Tensor actual = cat(logits, 1);
                expected ??= actual;
                Compare.Same(actual, expected, $"round {round}");
            }

            ConversationTests.Collect();
            Compare.Same(subject.Run(ids, Prompt), own, $"own, round {round}");
        }
    }

    [Test]
    public void AForgottenModelIsCollected([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        WeakReference[] forgotten = UseAndForget(name);
        ConversationTests.Collect();
        ConversationTests.Collect();
        Assert.That(forgotten.Select(reference => reference.IsAlive), Is.All.False);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static WeakReference[] UseAndForget(string name)
    {
        Subject subject = Subject.Make(name);
        nn.Module own = subject.Attentions[0];
        MustafarAttachment attachment = subject.Model.UseMustafar(s_options);
        using DisposeScope scope = NewDisposeScope();
        subject.Run(Subject.Ids(1, Tokens, seed: 8), Prompt);
        return [new(subject.Model), new(own), new(subject.Attentions[0]), new(attachment)];
    }

    // Names, order, types and places of everything registered.
    private static string[] Describe(nn.Module model) =>
    [
        .. model.named_modules().Select(module => $"module {module.name} {module.module.GetName()} {module.module.GetType().Name}"),
        .. model.named_parameters().Select(parameter => $"parameter {parameter.name} {Describe(parameter.parameter)}"),
        .. model.named_buffers().Select(buffer => $"buffer {buffer.name} {Describe(buffer.buffer)}"),
        .. model.state_dict().Select(entry => $"state {entry.Key} {Describe(entry.Value)}"),
    ];

    private static string Describe(Tensor tensor) => $"{tensor.dtype} {tensor.device} [{string.Join(", ", tensor.shape)}]";

    // The tensors in the fields of a module's own class.
    private static string[] OwnTensors(nn.Module module) =>
    [
        .. FieldsOf(module.GetType()).Where(field => field.FieldType.IsAssignableTo(typeof(Tensor)))
            .Select(field => $"{field.Name} {Describe((Tensor)field.GetValue(module)!)}").Order(),
    ];

    // Each module's fields but the cache of its latest call, and what its lists hold, by path.
    private static Dictionary<string, object?> Fields(nn.Module model)
    {
        Dictionary<string, object?> all = [];
        foreach ((string path, nn.Module module) in model.named_modules().Prepend(("", model)))
        {
            foreach (FieldInfo field in FieldsOf(module.GetType()).Where(field => !field.FieldType.IsValueType && field.Name != "_cache"))
            {
                object? value = field.GetValue(module);
                all[$"{path}:{field.DeclaringType!.Name}.{field.Name}"] = value;
                for (int i = 0; value is IList list && i < list.Count && list[i] is not ValueType; i++)
                {
                    all[$"{path}:{field.Name}[{i}]"] = list[i];
                }
            }

            foreach ((string name, nn.Module child) in module.named_children())
            {
                all[$"{path}/{name}"] = child;
            }
        }

        return all;
    }

    private static IEnumerable<FieldInfo> FieldsOf(Type type)
    {
        for (Type? level = type; level is not null && level != typeof(object); level = level.BaseType)
        {
            foreach (FieldInfo field in level.GetFields(
                BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly))
            {
                yield return field;
            }
        }
    }
}
