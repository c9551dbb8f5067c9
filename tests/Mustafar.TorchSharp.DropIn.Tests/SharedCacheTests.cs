using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.DropIn.Models.GenAI;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>
/// The layers of a conversation share one cache and its steps, whatever layers a forward visits: each gives what it would give alone.
/// </summary>
[TestFixtureSource(typeof(TestDevices), nameof(TestDevices.All))]
public sealed class SharedCacheTests(string device) : DefaultDeviceFixture(device)
{
    private const double Scale = 0.2;
    private const int Prompt = 70;

    private readonly MustafarOptions _pruned = new()
    {
        KeySparsity = 0.5, ValueSparsity = 0.7, KeyBits = 4, ValueBits = 8, LocalWindow = 8, GroupSize = 32,
    };

    [Test]
    public void AllLayersAreInOneCacheAndItsStepIsPlannedOnce([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(_pruned);
        Tensor ids = Subject.Ids(2, Prompt + 5, seed: 1);
        object conversation = subject.NewConversation(2);
        subject.Run(ids, Prompt, conversation);
        LayerGroup group = attachment.Conversations.Single().Caches.Groups.Single();
        Assert.That(group.Layers, Has.Count.EqualTo(Subject.Layers));
        Assert.That((group.Length, group.Step), Is.EqualTo((Prompt + 5, default(CacheStep))));
        GC.KeepAlive(conversation);
    }

    // Layers called by a schedule: each letter is a layer, a number the token at which its next call begins.
    [TestCase("a b c d | a b c d | a b c d", 1, TestName = "all layers in each step")]
    [TestCase("b | b | b", 1, TestName = "one layer of several")]
    [TestCase("a b c d | a b | a b | a:1 b:1 c d | a b c d", 2, TestName = "a draft by the first layers, then all from before it")]
    [TestCase("d c b a | a c b d | b a d c", 1, TestName = "another order in each step")]
    [TestCase("a b c d | a a a b b b c c c d d d", 4, TestName = "one layer after the other")]
    [TestCase("a b | c d | a b | d c", 1, TestName = "two halves in turns")]
    [TestCase("a b c d | a b | a:1 b:1 c d | a b c d", 1, TestName = "a step that is begun again")]
    [TestCase("a b c d | a b c | a:0 b:0 c:0 d:0 | a b c d", 1, TestName = "a prompt in the middle of a step")]
    public void WhateverLayersAStepVisitsEachGivesWhatItGivesAlone(string schedule, int groups)
    {
        random.manual_seed(5);
        using OwnModel model = new(() => new OwnAttention(heads: 2));
        OwnAttention[] own = [.. model.All.Take(4)];
        Tensor tokens = randn(2, Prompt + 20, 2 * Subject.HeadDim);
        Layer[] layers = [.. own.Select((_, i) => new Layer(i))];
        using MustafarAttachment attachment = model.UseMustafar(_pruned, new OwnAdapter());
        OwnAttention[] shared = [.. model.All.Take(4)];
        OwnCache conversation = new();
        Dictionary<int, MustafarCache> alone = [];
        foreach (string call in schedule.Split([' ', '|'], StringSplitOptions.RemoveEmptyEntries))
        {
            string[] parts = call.Split(':');
            Layer layer = layers[parts[0][0] - 'a'];
            int step = parts.Length > 1 ? int.Parse(parts[1], System.Globalization.CultureInfo.InvariantCulture) : layer.Steps;
            (int start, int count) = step == 0 ? (0, Prompt) : (Prompt + step - 1, 1);
            layer.Steps = step + 1;
            Tensor x = tokens.narrow(1, start, count);
            if (!alone.TryGetValue(layer.Index, out MustafarCache? cache))
            {
                alone.Add(layer.Index, cache = new MustafarCache(2, new() { NumKvHeads = 2, HeadDim = Subject.HeadDim }, ScalarType.Float32, new Device(DeviceName), _pruned));
            }

            cache.Truncate(Math.Min(start, cache.Length));
            (Tensor query, Tensor keys, Tensor values) = own[layer.Index].Project(x);
            Tensor expected = cache.Forward(query, keys, values, Scale).transpose(1, 2).reshape(x.shape);
            conversation.Length = start;
            Same(shared[layer.Index].forward(x, conversation, Scale).Output, expected, $"{call} of {schedule}");
        }

        Assert.That(attachment.Conversations.Single().Caches.Groups, Has.Count.EqualTo(groups));
        foreach (MustafarCache cache in alone.Values)
        {
            cache.Dispose();
        }
    }

    [Test]
    public void LayersOfDifferentShapesShareOneCacheEachOnceTheyAreKnown()
    {
        random.manual_seed(6);
        int made = 0;
        using OwnModel model = new(() => new OwnAttention(heads: 1 + (made++ % 2)));
        using MustafarAttachment attachment = model.UseMustafar(_pruned, new OwnAdapter());
        Tensor[]? first = null;
        foreach (int groups in (int[])[model.All.Length, 2])
        {
            OwnCache conversation = new();
            List<Tensor> outputs = [];
            for (int start = 0, count = Prompt; start < Prompt + 3; start += count, count = 1)
            {
                foreach (OwnAttention attention in model.All)
                {
                    conversation.Length = start;
                    Tensor x = sin(arange(start * 10, (start + count) * 10, 10).unsqueeze(-1) + arange(attention.Heads * Subject.HeadDim)).unsqueeze(0);
                    outputs.Add(attention.forward(x, conversation, Scale).Output);
                }
            }

            Assert.That(attachment.Find(conversation)!.Caches.Groups.Count, Is.EqualTo(groups));
            first ??= [.. outputs];
            for (int i = 0; i < first.Length; i++)
            {
                Same(outputs[i], first[i], $"call {i}");
            }
        }
    }

    [Test]
    public void AStepThatFailsInALayerIsUndoneInAll([Values("genai", "llm-sharp", "llm-sharp-fast")] string name, [Values] bool prompt)
    {
        using Subject subject = Subject.Make(name);
        Tensor ids = Subject.Ids(1, Prompt + 3, seed: 2);
        using MustafarAttachment attachment = subject.Model.UseMustafar(_pruned);
        Tensor expected = subject.Run(ids, Prompt);
        object conversation = subject.NewConversation();
        List<Tensor> logits = [];
        if (!prompt)
        {
            logits.Add(subject.Step(ids, 0, Prompt, conversation));
        }

        int start = prompt ? 0 : Prompt, end = prompt ? Prompt : Prompt + 1;
        string projection = name == "genai" ? "q_proj" : "qkv_proj";
        object? whole = Reflected.Get(subject.Attentions[^1], projection);
        Reflected.TrySet(subject.Attentions[^1], projection, null);
        Assert.That(() => subject.Step(ids, start, end, conversation), Throws.TypeOf<NotSupportedException>().With.Message.Contains(projection));
        Reflected.TrySet(subject.Attentions[^1], projection, whole);
        Assert.That(attachment.Find(name == "genai" ? conversation : ((List<Models.LlmSharp.IKvCache>)conversation)[0])?.Length ?? 0, Is.EqualTo(start));
        for (; start < Prompt + 3; start = end, end++)
        {
            logits.Add(subject.Step(ids, start, end, conversation));
        }

        Same(cat(logits, 1), expected, "logits after the failure");
        Assert.That(attachment.Conversations[^1].Caches.Groups, Has.Count.EqualTo(1));
        GC.KeepAlive(conversation);
    }

    [Test]
    public void ALongPromptGoesThroughModulesOfSingleTokensInPieces([Values(1, 7, 60)] int most)
    {
        using Subject subject = Subject.Make("genai");
        Tensor ids = Subject.Ids(2, 61, seed: 3);
        using MustafarAttachment attachment = subject.Model.UseMustafar(_pruned);
        Tensor expected = subject.Step(ids, 0, 61, subject.NewConversation(2));
        TokenPieces[] pieces = [.. subject.Model.modules().OfType<IReplacedModule>().Select(module => module.Replacement).OfType<TokenPieces>()];
        Assert.That(pieces, Has.Length.EqualTo((3 * Subject.Layers) + 1), "two norms and a feed-forward module in each layer, and the last norm");
        Array.ForEach(pieces, piece => piece.Most = most);
        // Products of other shapes round differently.
        Compare.Close(subject.Step(ids, 0, 61, subject.NewConversation(2)), expected, 1e-4, 1e-4, "logits");
        Assert.That(((LlamaForCausalLM)subject.Model).forward(ids).requires_grad, Is.True, "gradients pass whole");
    }

    // On CUDA two runs of torch's products may differ in their last bits.
    private void Same(Tensor actual, Tensor expected, string what)
    {
        if (DeviceName == "cpu")
        {
            Compare.Same(actual, expected, what);
        }
        else
        {
            Compare.Close(actual, expected, 1e-4, 1e-4, what);
        }
    }

    private sealed class Layer(int index)
    {
        internal int Index => index;

        internal int Steps { get; set; }
    }
}
