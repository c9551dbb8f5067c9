using Mustafar.DropIn;
using Mustafar.Tests.DropIn.Models;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn;

/// <summary>Several threads with one model: what may go on at once, what waits, what is refused.</summary>
[TestFixture]
public sealed class ThreadTests : TensorFixture
{
    private const int Prompt = 50;
    private const int Tokens = 75;

    private static readonly MustafarOptions s_pruned = new() { KeySparsity = 0.5, ValueSparsity = 0.7, LocalWindow = 8, GroupSize = 32 };

    // Each in a conversation of its own; threads take turns in a model that keeps the cache of the current call in a field.
    [Test]
    public void EightThreadsGiveTheTokensOfOne([ValueSource(typeof(Subject), nameof(Subject.WithCacheObjects))] string name)
    {
        using Subject subject = Subject.Make(name);
        using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned);
        long[][] expected = [.. Enumerable.Range(0, 8).Select(i => Generate(subject, seed: 20 + i))];
        Assert.That(expected.Select(tokens => string.Join(' ', tokens)).Distinct().Count(), Is.GreaterThan(4));
        long[][] actual = new long[expected.Length][];
        Threads.AtOnce([.. Enumerable.Range(0, expected.Length).Select(i => (Action)(() => actual[i] = Generate(subject, seed: 20 + i)))]);
        Assert.That(actual, Is.EqualTo(expected));
    }

    [Test]
    public void ASecondThreadInAConversationIsRefusedAndTheFirstGoesOn()
    {
        using OwnModel model = new(() => new OwnAttention(heads: 2));
        using Pause pause = new();
        using MustafarAttachment attachment = model.UseMustafar(s_pruned, new PausingAdapter(pause.Here));
        OwnCache cache = new();
        Tensor x = randn(1, Prompt, 2 * Subject.HeadDim);
        (Tensor, int) expected = model.single.forward(x, new OwnCache(), 0.1);
        pause.Next();
        Task<(Tensor Output, int Length)> first = Task.Run(() => model.single.forward(x, cache, 0.1));
        pause.Await();
        Assert.That(
            () => model.single.forward(x, cache, 0.1), Throws.InvalidOperationException.With.Message.Contains("one thread at a time"));
        Compare.Same(model.single.forward(x, new OwnCache(), 0.1).Output, expected.Item1, "another conversation meanwhile");
        pause.GoOn();
        Compare.Same(first.Result.Output, expected.Item1, "first");
        Assert.That(model.single.forward(x, cache, 0.1).Length, Is.EqualTo(2 * Prompt));
    }

    [TestCase("release one")]
    [TestCase("release all")]
    [TestCase("dispose")]
    public void FreeingWaitsForAnAttentionCall(string how)
    {
        using OwnModel model = new(() => new OwnAttention(heads: 2));
        OwnAttention own = model.single;
        using Pause pause = new();
        MustafarAttachment attachment = model.UseMustafar(s_pruned, new PausingAdapter(pause.Here));
        OwnCache cache = new();
        Tensor x = randn(1, Prompt, 2 * Subject.HeadDim);
        Tensor expected = model.single.forward(x, new OwnCache(), 0.1).Output;
        pause.Next();
        Task<(Tensor Output, int Length)> call = Task.Run(() => model.single.forward(x, cache, 0.1));
        pause.Await();
        Task freeing = Task.Run(() =>
        {
            switch (how)
            {
                case "release one":
                    Assert.That(attachment.Release(cache), Is.True);
                    break;
                case "release all":
                    attachment.ReleaseAll();
                    break;
                default:
                    attachment.Dispose();
                    break;
            }
        });
        Thread.Sleep(20);
        pause.GoOn();
        Compare.Same(call.Result.Output, expected, "the call under way");
        freeing.Wait();
        Assert.That(attachment.Find(cache), Is.Null);
        attachment.Dispose();
        Assert.That(attachment.Memory.TotalBytes, Is.Zero);
        Assert.That(model.single, Is.SameAs(own));
    }

    [Test]
    public void AnAdapterCannotFreeCachesInItsCall()
    {
        using OwnModel model = new(() => new OwnAttention(heads: 2));
        MustafarAttachment? attachment = null;
        Action? act = null;
        using (attachment = model.UseMustafar(s_pruned, new PausingAdapter(() => act?.Invoke())))
        {
            OwnCache cache = new();
            Tensor x = randn(1, Prompt, 2 * Subject.HeadDim);
            model.single.forward(x, cache, 0.1);
            foreach (Action refused in (Action[])[() => attachment.Release(cache), attachment.ReleaseAll, attachment.Dispose])
            {
                act = refused;
                Assert.That(
                    () => model.single.forward(x, cache, 0.1),
                    Throws.InvalidOperationException.With.Message.Contains("middle of an attention call"));
            }

            act = () => Assert.That(attachment.Memory.TotalBytes, Is.Positive);
            Assert.That(model.single.forward(x, cache, 0.1).Length, Is.EqualTo(2 * Prompt));
        }
    }

    [Test]
    public void AThreadThatGoesThroughTheModelMissesNothingWhileAttentionIsExchanged()
    {
        using OwnModel model = new(() => new OwnAttention(heads: 1));
        string[] expected = Names();
        using CancellationTokenSource done = new();
        Task<int> reader = Task.Run(() =>
        {
            int rounds = 0;
            for (; !done.IsCancellationRequested || rounds == 0; rounds++)
            {
                try
                {
                    Assert.That(Names(), Is.EqualTo(expected));
                }
                catch (InvalidOperationException)
                {
                    // A collection was changed under its enumeration.
                }
            }

            return rounds;
        });
        for (int i = 0; i < 50; i++)
        {
            model.UseMustafar(s_pruned, new OwnAdapter()).Dispose();
        }

        done.Cancel();
        Assert.That(reader.Result, Is.Positive);

        string[] Names() => [.. model.named_modules().Select(module => module.name)];
    }

    private static IEnumerable<TestCaseData> Exchanged =>
        Subject.Names.Select(name => new TestCaseData(name, false)).Append(new TestCaseData("genai", true));

    // A thread may be anywhere in the model, its own attention too. What is refused is refused with an exception of which the caller knows
    // what it means; nothing crashes, and the model is whole after.
    [TestCaseSource(nameof(Exchanged))]
    public void FreeingAndExchangingWhileThreadsGenerate(string name, bool linear)
    {
        using Subject subject = Subject.Make(name);
        nn.Module[] own = subject.Attentions;
        long[] expectedOwn = Generate(subject, seed: 30);
        // With its own attention, a model of the others serves one thread at a time.
        int threads = name.StartsWith("llm-sharp", StringComparison.Ordinal) ? 3 : 1;
        using CancellationTokenSource done = new();
        int generated = 0;
        Action generate = () =>
        {
            while (!done.IsCancellationRequested)
            {
                try
                {
                    Generate(subject, seed: 30);
                    Interlocked.Increment(ref generated);
                }
                catch (InvalidOperationException)
                {
                    // What the generation needs was released, or the model's own attention cannot go on with it.
                }
            }
        };
        Action exchange = () =>
        {
            try
            {
                for (int i = 0; i < 6; i++)
                {
                    using MustafarAttachment attachment = subject.Model.UseMustafar(s_pruned, linear);
                    Thread.Sleep(15);
                    _ = attachment.Conversations.Any(conversation => conversation.Release());
                    Thread.Sleep(15);
                    attachment.ReleaseAll();
                    Thread.Sleep(15);
                }
            }
            finally
            {
                done.Cancel();
            }
        };
        Threads.AtOnce([exchange, .. Enumerable.Repeat(generate, threads)]);
        TestContext.Out.WriteLine($"{generated} generations");
        Assert.That(subject.Attentions, Is.EqualTo(own));
        Assert.That(Generate(subject, seed: 30), Is.EqualTo(expectedOwn));
    }

    /// <summary>Greedy tokens after a prompt.</summary>
    internal static long[] Generate(Subject subject, int seed)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        long[] prompt = [.. Enumerable.Range(0, Prompt).Select(i => ((i * (seed + 3L)) + (i * i) + seed) % Subject.Vocabulary)];
        object conversation = subject.NewConversation();
        List<long> tokens = [];
        long[] next = prompt;
        for (int start = 0; start < Tokens; start += tokens.Count == 1 ? Prompt : 1, next = [tokens[^1]])
        {
            tokens.Add(subject.Logits(tensor(next).unsqueeze(0), start, conversation)[0, -1].argmax().item<long>());
        }

        return [.. tokens];
    }

    /// <summary>Stops a thread in the middle of an attention call.</summary>
    private sealed class Pause : IDisposable
    {
        private readonly SemaphoreSlim _reached = new(0);
        private readonly SemaphoreSlim _goOn = new(0);
        private int _next;

        /// <summary>The next call is to stop.</summary>
        public void Next() => Volatile.Write(ref _next, 1);

        public void Here()
        {
            if (Interlocked.Exchange(ref _next, 0) == 1)
            {
                _reached.Release();
                _goOn.Wait();
            }
        }

        public void Await() => _reached.Wait();

        public void GoOn() => _goOn.Release();

        public void Dispose()
        {
            _reached.Dispose();
            _goOn.Dispose();
        }
    }

    /// <summary>Does something in each call.</summary>
    private sealed class PausingAdapter(Action inCall) : AttentionAdapter
    {
        private readonly OwnAdapter _own = new();

        public override bool Matches(nn.Module candidate) => _own.Matches(candidate);

        public override object? ConversationOf(nn.Module attention, IReadOnlyList<object?> arguments) =>
            _own.ConversationOf(attention, arguments);

        public override AttentionStep Read(nn.Module attention, IReadOnlyList<object?> arguments)
        {
            inCall();
            return _own.Read(attention, arguments);
        }

        public override object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result) =>
            _own.Complete(attention, arguments, result);
    }
}
