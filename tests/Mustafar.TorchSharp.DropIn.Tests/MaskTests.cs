using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.DropIn.Models.GenAI;
using Mustafar.Tests.DropIn.Models.LlmSharp;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>Masks that a compressed cache can serve: causal, padding on the left, a sliding window; and those that it refuses.</summary>
[TestFixture]
public sealed class MaskTests : TensorFixture
{
    private const double Rounding = 1e-4;
    private const int Prompt = 50;
    private const int Tokens = 75;

    private static readonly long[] s_padding = [0, 5, 47];
    private static readonly MustafarOptions s_everything = new() { KeySparsity = 0, ValueSparsity = 0, LocalWindow = 8, GroupSize = 32 };

    [Test]
    public void PaddingOnTheLeftIsHidden([Values("genai", "llm-sharp")] string name)
    {
        using Subject subject = Subject.Make(name);
        Tensor ids = Subject.Ids(s_padding.Length, Tokens, seed: 1);
        Tensor expected = Run(subject, ids, wholeMask: true);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything);
        Close(Run(subject, ids, wholeMask: true), expected);
        Close(Run(subject, ids, wholeMask: false), expected);
    }

    [Test]
    public void APaddedSequenceIsPrunedAsAlone()
    {
        // This model counts positions without padding, so that the keys are the same.
        using Subject subject = Subject.Make("llm-sharp");
        Tensor ids = Subject.Ids(s_padding.Length, Tokens, seed: 5);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything with { KeySparsity = 0.5, ValueSparsity = 0.7 });
        Tensor alone = stack([.. s_padding.Select(Alone)]);
        Close(Run(subject, ids, wholeMask: true), alone);

        Tensor Alone(long padding, int sequence)
        {
            Tensor tokens = ids.narrow(0, sequence, 1).narrow(1, padding, Tokens - padding);
            return cat([zeros(padding, Subject.Vocabulary), subject.Run(tokens, Prompt - (int)padding)[0]]);
        }
    }

    [Test]
    public void ASlidingWindowIsServedByItsOption()
    {
        const int window = 17;
        using Subject subject = Subject.Make("genai");
        LlamaForCausalLM model = (LlamaForCausalLM)subject.Model;
        Tensor ids = Subject.Ids(2, Tokens, seed: 2);
        Tensor expected = RunWindowed(model, ids, window);
        using (MustafarAttachment without = model.UseMustafar(s_everything))
        {
            Assert.That(
                () => RunWindowed(model, ids, window),
                Throws.TypeOf<NotSupportedException>().With.Message.Contains("MustafarOptions.SlidingWindow"));
        }

        using MustafarAttachment attachment = model.UseMustafar(s_everything with { SlidingWindow = window });
        Compare.Close(RunWindowed(model, ids, window), expected, Rounding, Rounding, "masks with the window");
        Compare.Close(subject.Run(ids, Prompt), expected, Rounding, Rounding, "masks without it");
    }

    // The package's window is one smaller than what its masks show of a prompt.
    [TestCase(16, true)]
    [TestCase(60, true)]
    [TestCase(16, false)]
    public void WhatThePackageHidesBeyondItsWindowIsServedByTheOption(int window, bool given)
    {
        using Subject subject = Subject.Make("genai");
        LlamaForCausalLM model = (LlamaForCausalLM)subject.Model;
        Tensor ids = Subject.Ids(2, Tokens, seed: 6);
        MustafarOptions options = s_everything with { SlidingWindow = window + 1 };
        using MustafarAttachment attachment = model.UseMustafar(given ? options : options with { SlidingWindow = null });
        if (given)
        {
            Tensor expected = subject.Run(ids, Prompt);
            Compare.Close(RunPipeline(model, ids, window, new long[2], new DynamicKVCache()), expected, Rounding, Rounding, "logits");
        }
        else
        {
            Assert.That(
                () => RunPipeline(model, ids, window, new long[2], new DynamicKVCache()),
                Throws.TypeOf<NotSupportedException>().With.Message.Contains("MustafarOptions.SlidingWindow"));
        }
    }

    [Test]
    public void AWindowOfTheModelsConfigurationIsTaken()
    {
        const int window = 16;
        random.manual_seed(7);
        using LlamaForCausalLM model = new(heads: 4, kvHeads: 2, window: window);
        model.eval();
        Tensor ids = Subject.Ids(2, Tokens, seed: 9);
        Tensor expected = RunWindowed(model, ids, window + 1);
        using (MustafarAttachment attachment = model.UseMustafar(s_everything))
        {
            Assert.That(attachment.Options, Is.EqualTo(s_everything with { SlidingWindow = window + 1 }));
            Compare.Close(RunPipeline(model, ids, window, new long[2], new DynamicKVCache()), expected, Rounding, Rounding, "logits");
        }

        foreach (int other in (int[])[1, window, window + 2])
        {
            Assert.That(
                () => model.UseMustafar(s_everything with { SlidingWindow = other }),
                Throws.ArgumentException.With.Property("ParamName").EqualTo("options").And.Message.Contains("17"));
        }

        using MustafarAttachment same = model.UseMustafar(s_everything with { SlidingWindow = window + 1 });
    }

    [Test]
    public void TheFirstLlamaHasAWindowThatNoConfigurationNames()
    {
        using Models.GenAI.First.LlamaModel first = new();
        using MustafarAttachment attachment = first.UseMustafar(s_everything);
        Assert.That(attachment.Options.SlidingWindow, Is.EqualTo(2049));
        using Subject later = Subject.Make("genai");
        using MustafarAttachment ofLater = later.Model.UseMustafar(s_everything);
        Assert.That(ofLater.Options.SlidingWindow, Is.Null);
    }

    [Test]
    public void PaddingThatLaterMasksShowStaysHidden()
    {
        const int window = 200;
        using Subject subject = Subject.Make("genai");
        LlamaForCausalLM model = (LlamaForCausalLM)subject.Model;
        Tensor ids = Subject.Ids(s_padding.Length, Tokens, seed: 7);
        Tensor expected = Run(subject, ids, wholeMask: true);
        using MustafarAttachment attachment = model.UseMustafar(s_everything);
        Close(RunPipeline(model, ids, window, s_padding, new DynamicKVCache()), expected);
    }

    [Test]
    public void AMaskThatIsWrittenAnewIsReadAnew()
    {
        using Subject subject = Subject.Make("genai");
        LlamaForCausalLM model = (LlamaForCausalLM)subject.Model;
        Tensor ids = Subject.Ids(s_padding.Length, Prompt, seed: 8);
        Tensor mask = LlamaForCausalLM.CausalMask(ids, 0, s_padding);
        Tensor other = LlamaForCausalLM.CausalMask(ids, 0, [.. s_padding.Reverse()]);
        using IDisposable noGrad = no_grad();
        using MustafarAttachment attachment = model.UseMustafar(s_everything);
        Tensor expected = model.Logits(ids, 0, new DynamicKVCache(), other);
        model.Logits(ids, 0, new DynamicKVCache(), mask);
        mask.copy_(other);
        Compare.Same(model.Logits(ids, 0, new DynamicKVCache(), mask), expected, "logits");
    }

    [Test]
    public void AMaskIsRememberedForOneStep()
    {
        AttentionLayer[] layers = [.. Enumerable.Range(0, 3).Select(_ => new AttentionLayer(null!, null!, null!))];
        (Tensor mask, Tensor other) = (zeros(2, 2), zeros(2, 2));
        int[] padding = [1];
        AttentionStep tokens = new() { Query = mask, Keys = zeros(1, 1, 2, 1), Values = mask, Start = 0 };
        ConversationStep step = new();
        Visit(0);
        step.Add(mask, 0, [0], padding);
        Visit(1);
        Assert.That(step.Find(mask, 0, [0]), Is.SameAs(padding));
        Assert.That((step.Find(other, 0, [0]), step.Find(mask, 1, [0]), step.Find(mask, 0, [1])), Is.EqualTo(default((int[]?, int[]?, int[]?))));
        Visit(2);
        Visit(1);
        Assert.That(step.Find(mask, 0, [0]), Is.Null, "a step that begins at another layer");

        void Visit(int layer) => step.Visit(layers[layer], tokens);
    }

    [Test]
    public void OtherMasksAreRefusedAndLeaveTheConversationAsItWas()
    {
        using Subject subject = Subject.Make("genai");
        LlamaForCausalLM model = (LlamaForCausalLM)subject.Model;
        Tensor ids = Subject.Ids(1, Tokens, seed: 3);
        Tensor expected = subject.Run(ids, Prompt);
        using MustafarAttachment attachment = model.UseMustafar(s_everything);
        using DynamicKVCache cache = new();
        Tensor actual = subject.Step(ids, 0, Prompt, cache);
        Tensor causal = LlamaForCausalLM.CausalMask(ids.narrow(1, Prompt, 3), Prompt);
        Refused(zeros_like(causal), "not causal");
        Refused(null, "3 tokens without a mask");
        Refused(causal.masked_fill(causal == 0, -1), "adds numbers");
        Refused(causal == 0, "Bool");
        Refused(causal.narrow(3, 0, Prompt), "expected numbers to add, [1, 1, 3, 53]");
        Refused(full_like(causal, finfo(ScalarType.Float32).min), "not causal");
        Refused(causal.index_fill(3, tensor(new long[] { 2 }), -1e9), "padding elsewhere");
        actual = cat([actual, subject.Step(ids, Prompt, Prompt + 3, cache)], 1);
        Compare.Close(actual, expected.narrow(1, 0, Prompt + 3), Rounding, Rounding, "after refusals");

        void Refused(Tensor? mask, string reason) => Assert.That(
            () => model.Logits(ids.narrow(1, Prompt, 3), Prompt, cache, mask),
            Throws.TypeOf<NotSupportedException>().With.Message.Contains(reason));
    }

    [Test]
    public void PaddingElsewhereInAPromptIsRefused()
    {
        using Subject subject = Subject.Make("genai");
        LlamaForCausalLM model = (LlamaForCausalLM)subject.Model;
        Tensor ids = Subject.Ids(1, 40, seed: 4);
        using MustafarAttachment attachment = model.UseMustafar(s_everything);
        foreach ((long column, string reason) in ((long, string)[])[(39, "padding elsewhere"), (10, "padding elsewhere")])
        {
            Tensor mask = LlamaForCausalLM.CausalMask(ids, 0).index_fill(3, tensor(new[] { column }), -1e9);
            Assert.That(
                () => model.Logits(ids, 0, new DynamicKVCache(), mask),
                Throws.TypeOf<NotSupportedException>().With.Message.Contains(reason),
                $"column {column}");
        }

        Assert.That(
            () => model.Logits(ids, 0, new DynamicKVCache(), full([1, 1, 40, 40], -1e9)),
            Throws.TypeOf<NotSupportedException>().With.Message.Contains("hides all tokens"));
    }

    // What a padding token gives matters to nobody.
    private static void Close(Tensor actual, Tensor expected)
    {
        for (int b = 0; b < s_padding.Length; b++)
        {
            long count = Tokens - s_padding[b];
            Compare.Close(
                actual[b].narrow(0, s_padding[b], count), expected[b].narrow(0, s_padding[b], count), Rounding, Rounding, $"sequence {b}");
        }
    }

    // By masks that show a token the last ones, itself included.
    private static Tensor RunWindowed(LlamaForCausalLM model, Tensor ids, int window)
    {
        using IDisposable noGrad = no_grad();
        DynamicKVCache cache = new();
        List<Tensor> logits = [];
        for (int start = 0, end = Prompt; end <= Tokens; start = end++)
        {
            Tensor step = ids.narrow(1, start, end - start);
            Tensor distance = arange(start, end).reshape(-1, 1) - arange(end);
            Tensor mask = LlamaForCausalLM.CausalMask(step, start).masked_fill(distance >= window, finfo(ScalarType.Float32).min);
            logits.Add(model.Logits(step, start, cache, mask));
        }

        return cat(logits, 1);
    }

    private static Tensor RunPipeline(LlamaForCausalLM model, Tensor ids, int window, long[] padding, DynamicKVCache cache)
    {
        using IDisposable noGrad = no_grad();
        List<Tensor> logits = [];
        for (int start = 0, end = Prompt; end <= Tokens; start = end++)
        {
            Tensor step = ids.narrow(1, start, end - start);
            logits.Add(model.Logits(step, start, cache, LlamaForCausalLM.PipelineMask(step, start, window, padding)));
        }

        return cat(logits, 1);
    }

    // wholeMask: whether a single token's mask has columns for the past.
    private static Tensor Run(Subject subject, Tensor ids, bool wholeMask)
    {
        using IDisposable noGrad = no_grad();
        object conversation = subject.NewConversation(ids.shape[0]);
        List<Tensor> logits = [];
        for (int start = 0, end = Prompt; end <= Tokens; start = end++)
        {
            Tensor step = ids.narrow(1, start, end - start);
            if (subject.Model is LlamaForCausalLM model)
            {
                Tensor mask = start == 0 || wholeMask
                    ? LlamaForCausalLM.CausalMask(step, start, s_padding)
                    : zeros(s_padding.Length, 1, 1, 1);
                logits.Add(model.Logits(step, start, (IKVCache)conversation, mask));
            }
            else
            {
                Tensor tokens = (arange(end).unsqueeze(0) >= tensor(s_padding).unsqueeze(1)).to(ScalarType.Int64);
                logits.Add(((Models.LlmSharp.LlamaModel)subject.Model).forward(step, (List<IKvCache>)conversation, tokens));
            }
        }

        return cat(logits, 1);
    }
}
