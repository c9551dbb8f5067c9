using System.Runtime.CompilerServices;
using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>Which call belongs to which conversation, how conversations begin, go back and end.</summary>
[TestFixture]
public sealed class ConversationTests : TensorFixture
{
    private const double Rounding = 1e-4;
    private const int Prompt = 50;
    private const int Tokens = 75;

    private static readonly MustafarOptions s_pruned = new() { KeySparsity = 0.5, ValueSparsity = 0.7, LocalWindow = 8, GroupSize = 32 };
    private static readonly MustafarOptions s_everything = s_pruned with { KeySparsity = 0, ValueSparsity = 0 };

    [Test]
    public void ConversationsGoOnSideBySide([ValueSource(typeof(Subject), nameof(Subject.WithCacheObjects))] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Tensor first = Subject.Ids(1, Tokens, seed: 1);
        Tensor second = Subject.Ids(2, Tokens, seed: 2);
        Tensor expectedOfFirst = subject.Run(first, Prompt);
        Tensor expectedOfSecond = subject.Run(second, Prompt);
        object one = subject.NewConversation(1);
        object two = subject.NewConversation(2);
        List<Tensor> ofFirst = [subject.Step(first, 0, Prompt, one)];
        List<Tensor> ofSecond = [subject.Step(second, 0, Prompt, two)];
        for (int i = Prompt; i < Tokens; i++)
        {
            ofFirst.Add(subject.Step(first, i, i + 1, one));
            ofSecond.Add(subject.Step(second, i, i + 1, two));
        }

        Compare.Same(cat(ofFirst, 1), expectedOfFirst, "first");
        Compare.Same(cat(ofSecond, 1), expectedOfSecond, "second");
    }

    [Test]
    public void AConversationBeginsAnewAtItsFirstToken([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Tensor ids = Subject.Ids(2, Tokens, seed: 3);
        Tensor expected = subject.Run(ids, Prompt);
        subject.Run(Subject.Ids(1, Tokens, seed: 4), Prompt);
        Compare.Same(subject.Run(ids, Prompt), expected, name);
    }

    [Test]
    public void AConversationThatBeganWithTheModelsOwnAttentionIsTakenOver(
        [ValueSource(typeof(Subject), nameof(Subject.WithCacheObjects))] string name)
    {
        using Subject subject = Subject.Make(name);
        Tensor ids = Subject.Ids(2, Tokens, seed: 5);
        Tensor expected = subject.Run(ids, Prompt);
        object conversation = subject.NewConversation(2);
        subject.Step(ids, 0, Prompt, conversation);
        subject.Step(ids, Prompt, Prompt + 1, conversation);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything);
        for (int i = Prompt + 1; i < Tokens; i++)
        {
            Compare.Close(subject.Step(ids, i, i + 1, conversation), expected.narrow(1, i, 1), Rounding, Rounding, $"{name}, token {i}");
        }

        Assert.That(attachment.Memory.CompressedBytes, Is.Positive);
        GC.KeepAlive(conversation);
    }

    [Test]
    public void AConversationWhoseTokensAreNowhereIsRefused()
    {
        using Subject subject = Subject.Make("torchsharp-llama");
        Tensor ids = Subject.Ids(1, Tokens, seed: 6);
        subject.Step(ids, 0, Prompt, subject);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Assert.That(
            () => subject.Step(ids, Prompt, Prompt + 1, subject),
            Throws.InvalidOperationException.With.Message.Contains("at token 50, but 0 tokens of it are cached"));
    }

    [Test]
    public void AConversationCanGoBack()
    {
        using Subject subject = Subject.Make("torchsharp-llama");
        Tensor ids = Subject.Ids(1, Tokens, seed: 7);
        Tensor expected = subject.Run(ids, Prompt);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_everything);
        subject.Run(ids, Prompt);
        const int back = Prompt - 10;
        Tensor again = subject.Step(ids, back, Tokens, subject);
        Compare.Close(again, expected.narrow(1, back, Tokens - back), Rounding, Rounding, "again");
    }

    [Test]
    public void AnotherNumberOfSequencesIsRefused([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Tensor ids = Subject.Ids(2, Tokens, seed: 8);
        object conversation = subject.NewConversation(2);
        subject.Step(ids, 0, Prompt, conversation);
        Assert.That(
            () => subject.Step(ids.narrow(0, 0, 1), Prompt, Prompt + 1, conversation),
            Throws.ArgumentException.With.Message.Contains("Expected 2 sequences"));
    }

    [Test]
    public void CachesAreFreedWithTheirConversation([ValueSource(typeof(Subject), nameof(Subject.WithCacheObjects))] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        WeakReference forgotten = Converse(subject);
        KeyValueCacheMemory ofForgotten = attachment.Memory;
        // Last, for a model may hold on to the cache of its latest call.
        object kept = subject.NewConversation();
        subject.Step(Subject.Ids(1, Prompt, seed: 9), 0, Prompt, kept);
        Assert.That(attachment.Memory.CompressedBytes, Is.EqualTo(2 * ofForgotten.CompressedBytes));
        Collect();
        Assert.That(forgotten.IsAlive, Is.False);
        Assert.That(attachment.Memory, Is.EqualTo(ofForgotten), "that of the one kept is the same");
        GC.KeepAlive(kept);
    }

    [Test]
    public void AConversationEndsWithTheModelsOwnCache(
        [ValueSource(typeof(Subject), nameof(Subject.WithCacheObjects))] string name, [Values] bool listed)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Tensor ids = Subject.Ids(1, Tokens, seed: 17);
        Tensor expected = subject.Run(ids, Prompt);
        object ended = subject.NewConversation(), kept = subject.NewConversation();
        subject.Step(ids, 0, Prompt, ended);
        MustafarConversation conversation = attachment.Conversations[^1];
        Tensor prompt = subject.Step(ids, 0, Prompt, kept);
        subject.Step(ids, Prompt, Prompt + 1, ended);
        Assert.That(conversation.Memory.TotalBytes, Is.Positive);
        Subject.End(ended);
        if (listed)
        {
            Assert.That(attachment.Conversations, Does.Not.Contain(conversation));
        }
        else
        {
            subject.Step(ids, 0, Prompt, subject.NewConversation());
        }

        Assert.That(conversation.IsReleased, Is.True, "when they are listed, or the next one begins");
        Assert.That(conversation.Memory.TotalBytes, Is.Zero);
        Assert.That(() => subject.Step(ids, Prompt + 1, Prompt + 2, ended), Throws.InstanceOf<InvalidOperationException>());
        Compare.Same(cat([prompt, subject.Step(ids, Prompt, Prompt + 1, kept)], 1), expected.narrow(1, 0, Prompt + 1), "kept");
    }

    [Test]
    public void TheModelsOwnCacheHoldsATensorThatOnlyTellsTheLength([ValueSource(typeof(Subject), nameof(Subject.WithCacheObjects))] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        object conversation = subject.NewConversation(2);
        subject.Step(Subject.Ids(2, Prompt, seed: 22), 0, Prompt, conversation);
        (Tensor Keys, Tensor Values)[] own = [.. subject.OwnCaches(conversation, 2, Prompt)];
        Assert.That(own, Has.Length.EqualTo(Subject.Layers));
        foreach ((Tensor keys, Tensor values) in own)
        {
            Assert.That(keys.shape, Is.EqualTo((long[])[2, 2, Prompt, Subject.HeadDim]));
            Assert.That(values.shape, Is.EqualTo(keys.shape));
            Assert.That(keys.stride().Concat(values.stride()), Is.All.Zero, "one element");
            Assert.That(keys.isnan().all().item<bool>(), Is.True);
        }
    }

    [Test]
    public void WhereTheModelsOwnCacheIsKeptUpToDateItsAttentionGoesOn()
    {
        using Subject subject = Subject.Make("torchsharp-llama");
        Tensor ids = Subject.Ids(2, Tokens, seed: 19);
        Tensor expected = subject.Run(ids, Prompt);
        subject.Run(Subject.Ids(3, Tokens, seed: 20), Prompt);
        using (MustafarAttachment attachment = subject.Model.UseMustafar(s_everything))
        {
            subject.Step(ids, 0, Prompt, subject);
            subject.Step(ids, Prompt, Prompt + 3, subject);
            // Back, and on with other tokens.
            subject.Step(Subject.Ids(2, Tokens, seed: 21), Prompt - 4, Prompt + 5, subject);
            subject.Step(ids, Prompt - 4, Prompt + 6, subject);
        }

        Compare.Close(
            subject.Step(ids, Prompt + 6, Tokens, subject), expected.narrow(1, Prompt + 6, Tokens - Prompt - 6), Rounding, Rounding, "logits");
    }

    [Test]
    public void ConversationsThatNobodyDisposesDoNotPileUp([Values("genai", "llm-sharp")] string name)
    {
        const int begun = 20;
        using Subject subject = Subject.Make(name, kvHeads: 4);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        object kept = subject.NewConversation(8);
        subject.Step(Subject.Ids(8, 512, seed: 18), 0, 512, kept);
        long one = attachment.Memory.TotalBytes, most = 0;
        for (int i = 0; i < begun; i++)
        {
            Converse(subject, batch: 8, tokens: 512);
            most = Math.Max(most, attachment.Memory.TotalBytes);
        }

        TestContext.Out.WriteLine($"at most {most / one} conversations of {one} bytes");
        Assert.That(one, Is.GreaterThan(8L << 20));
        Assert.That(most, Is.LessThan(begun / 2 * one));
        GC.KeepAlive(kept);
    }

    [Test]
    public void AReleasedConversationHasNoCachesAndCannotBeContinued()
    {
        using Subject subject = Subject.Make("genai");
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Tensor ids = Subject.Ids(1, Tokens, seed: 10);
        object released = subject.NewConversation();
        object kept = subject.NewConversation();
        subject.Step(ids, 0, Prompt, released);
        subject.Step(ids, 0, Prompt, kept);
        long bytes = attachment.Memory.CompressedBytes;
        Assert.That(attachment.Release(released), Is.True);
        Assert.That(attachment.Release(released), Is.False);
        Assert.That(attachment.Memory.CompressedBytes, Is.EqualTo(bytes / 2));
        Assert.That(() => subject.Step(ids, Prompt, Prompt + 1, released), Throws.InvalidOperationException);
        Assert.That(() => subject.Step(ids, Prompt, Prompt + 1, kept), Throws.Nothing);
        attachment.ReleaseAll();
        Assert.That(attachment.Memory.CompressedBytes, Is.Zero);
        Assert.That(() => subject.Step(ids, Prompt + 1, Prompt + 2, kept), Throws.InvalidOperationException);
        Assert.That(() => subject.Run(ids, Prompt), Throws.Nothing);
    }

    [Test]
    public void ConversationsAreListedNamedMeasuredAndReleased([ValueSource(typeof(Subject), nameof(Subject.Names))] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Assert.That(attachment.Conversations, Is.Empty);
        object first = subject.NewConversation(2);
        subject.Step(Subject.Ids(2, Tokens, seed: 15), 0, Prompt, first);
        MustafarConversation conversation = attachment.Conversations.Single();
        Assert.That(conversation.Name, Is.EqualTo("conversation 1"));
        Assert.That((conversation.Length, conversation.BatchSize), Is.EqualTo((Prompt, 2)));
        Assert.That(conversation.Memory.DenseBytes, Is.EqualTo(Subject.Layers * 2L * 2 * 2 * Prompt * Subject.HeadDim * sizeof(float)));
        Assert.That(conversation.Memory, Is.EqualTo(attachment.Memory));
        conversation.Name = "mine";
        subject.Step(Subject.Ids(2, Tokens, seed: 15), Prompt, Prompt + 1, first);
        Assert.That(attachment.Conversations.Single(), Is.SameAs(conversation));
        Assert.That((conversation.Name, conversation.Length), Is.EqualTo(("mine", Prompt + 1)));
        Assert.That(() => conversation.Name = null!, Throws.ArgumentNullException);

        Assert.That(conversation.Release(), Is.True);
        Assert.That((conversation.IsReleased, conversation.Release()), Is.EqualTo((true, false)));
        Assert.That((conversation.Length, conversation.BatchSize, conversation.Memory.TotalBytes), Is.EqualTo((0, 0, 0L)));
        Assert.That(attachment.Conversations, Is.Empty);
        Assert.That(attachment.Memory.TotalBytes, Is.Zero);
        Assert.That(
            () => subject.Step(Subject.Ids(2, Tokens, seed: 15), Prompt + 1, Prompt + 2, first),
            Throws.InvalidOperationException);
        subject.Step(Subject.Ids(1, Prompt, seed: 15), 0, Prompt, subject.NewConversation());
        Assert.That(attachment.Conversations.Single(), Is.Not.SameAs(conversation));
        Assert.That(attachment.Conversations.Single().Length, Is.EqualTo(Prompt));
    }

    [Test]
    public void AnyObjectOfAConversationFindsAndReleasesAllOfIt([Values("llm-sharp", "llm-sharp-fast")] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Tensor ids = Subject.Ids(1, Tokens, seed: 16);
        List<Models.LlmSharp.IKvCache>[] caches = [.. Enumerable.Range(0, 2)
            .Select(_ => (List<Models.LlmSharp.IKvCache>)subject.NewConversation())];
        subject.Step(ids, 0, Prompt, caches[0]);
        subject.Step(ids, 0, Prompt, caches[1]);
        subject.Step(ids, Prompt, Tokens, caches[0]);
        Assert.That(attachment.Conversations.Select(conversation => conversation.Length), Is.EqualTo((int[])[Tokens, Prompt]));
        Assert.That(caches[0].Select(attachment.Find), Is.All.SameAs(attachment.Conversations[0]));
        Assert.That(caches[1].Select(attachment.Find), Is.All.SameAs(attachment.Conversations[1]));
        Assert.That(attachment.Find(new object()), Is.Null);
        Assert.That(attachment.Release(caches[0][^1]), Is.True);
        Assert.That(caches[0].Select(attachment.Find), Is.All.Null);
        Assert.That(attachment.Conversations.Single().Length, Is.EqualTo(Prompt));
        Assert.That(attachment.Memory, Is.EqualTo(attachment.Find(caches[1][0])!.Memory));
        Assert.That(attachment.Release(attachment.Conversations[0]), Is.True);
        Assert.That(attachment.Memory.TotalBytes, Is.Zero);
    }

    [Test]
    public void AConversationThatIsHeldStaysListed()
    {
        using Subject subject = Subject.Make("llm-sharp");
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Converse(subject);
        MustafarConversation held = attachment.Conversations.Single();
        Collect();
        Assert.That(attachment.Conversations.Single(), Is.SameAs(held));
        Assert.That(held.Release(), Is.True);
        Assert.That(attachment.Memory.TotalBytes, Is.Zero);
    }

    [Test]
    public void AConversationUnderWayCannotGoOnWithTheModelsOwnAttention(
        [ValueSource(typeof(Subject), nameof(Subject.WithCacheObjects))] string name)
    {
        using Subject subject = Subject.Make(name);
        Tensor ids = Subject.Ids(1, Tokens, seed: 13);
        object conversation = subject.NewConversation();
        using (MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned))
        {
            subject.Step(ids, 0, Prompt, conversation);
        }

        Assert.That(() => subject.Step(ids, Prompt, Prompt + 1, conversation), Throws.InstanceOf<InvalidOperationException>());
        Assert.That(() => subject.Run(ids, Prompt), Throws.Nothing);
    }

    [Test]
    public void WithoutAConversationTheModelsOwnAttentionRuns()
    {
        using Subject subject = Subject.Make("genai");
        Models.GenAI.LlamaForCausalLM model = (Models.GenAI.LlamaForCausalLM)subject.Model;
        Tensor ids = Subject.Ids(1, 40, seed: 11);
        Tensor expected = model.forward(ids);
        using MustafarAttachment attachment = model.UseMustafar(s_pruned);
        Compare.Same(model.forward(ids), expected, "logits");
        Assert.That(model.forward(ids).requires_grad, Is.True, "gradients pass the model's own attention");
    }

    [Test]
    public void ACopyOfAConversationIsRefused()
    {
        using Subject subject = Subject.Make("genai");
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        Tensor ids = Subject.Ids(1, Tokens, seed: 14);
        Models.GenAI.DynamicKVCache original = new();
        Models.GenAI.DynamicKVCache copy = new();
        Tensor expected = subject.Run(ids, Prompt);
        subject.Step(ids, 0, Prompt, original);
        foreach ((int layer, (Tensor keys, Tensor values)) in original)
        {
            copy[layer] = (keys.clone(), values.clone());
        }

        Assert.That(
            () => subject.Step(ids, Prompt, Prompt + 1, copy),
            Throws.InvalidOperationException.With.Message.Contains("copy of a conversation"));
        Compare.Same(subject.Step(ids, Prompt, Prompt + 1, original), expected.narrow(1, Prompt, 1), "the original");
    }

    internal static void Collect()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
        GC.WaitForPendingFinalizers();
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static WeakReference Converse(Subject subject, int batch = 1, int tokens = Prompt)
    {
        using DisposeScope scope = NewDisposeScope();
        object conversation = subject.NewConversation(batch);
        subject.Step(Subject.Ids(batch, tokens, seed: 12), 0, tokens, conversation);
        return new WeakReference(conversation);
    }
}
