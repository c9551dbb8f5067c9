using Microsoft.Extensions.AI;
using Mustafar.Extensions.AI;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;

namespace Mustafar.Tests.Llama;

/// <summary>The chat client on the shipped checkpoint. The model is none for chats: what it says is code, but always the same.</summary>
[TestFixture]
public sealed class ChatClientTests
{
    private static readonly LlamaChatClientOptions s_options = new()
    {
        ChatTemplate = "llama3", DType = TorchSharp.torch.ScalarType.Float32, MaxOutputTokens = 12,
    };

    private LlamaChatClient _client = null!;

    [SetUp]
    public void Load() => _client = LlamaChatClient.Load(Golden.Checkpoint, s_options);

    [TearDown]
    public void Unload() => _client.Dispose();

    [Test]
    public async Task StreamsWhatItReturnsAtOnce()
    {
        List<ChatResponseUpdate> updates = [];
        await foreach (ChatResponseUpdate update in _client.GetStreamingResponseAsync("def add(a, b):"))
        {
            updates.Add(update);
        }

        ChatResponse response = await _client.GetResponseAsync("def add(a, b):");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(updates, Has.Count.GreaterThan(3));
            Assert.That(string.Concat(updates.Select(update => update.Text)), Is.EqualTo(response.Text).And.Not.Empty);
            Assert.That(updates.Select(update => update.MessageId).Distinct(), Has.Exactly(1).Items);
            Assert.That(updates.SkipLast(1).All(update => update.FinishReason is null));
            Assert.That(updates[^1].FinishReason, Is.EqualTo(ChatFinishReason.Length));
            Assert.That(response.FinishReason, Is.EqualTo(ChatFinishReason.Length));
            Assert.That(response.ModelId, Is.EqualTo("pyllama-14m"));
            Assert.That(response.Messages.Single().Role, Is.EqualTo(ChatRole.Assistant));
            Assert.That(response.Usage!.OutputTokenCount, Is.EqualTo(12));
            Assert.That(response.Usage.TotalTokenCount, Is.EqualTo(response.Usage.InputTokenCount + 12));
            Assert.That(updates.SelectMany(update => update.Contents).OfType<UsageContent>().Single().Details.CachedInputTokenCount, Is.Zero);
            Assert.That(response.Usage.CachedInputTokenCount, Is.EqualTo(response.Usage.InputTokenCount - 1));
        }
    }

    [Test]
    public async Task ALoadedModelRepliesLikeOneThatTheClientLoads()
    {
        LanguageModel language = LanguageModel.Load(Golden.Checkpoint, s_options.DType);
        Assert.That(() => new LlamaChatClient(language, s_options), Throws.ArgumentException.With.Message.Contains("Float32"));
        Assert.That(() => new LlamaChatClient(language), Throws.TypeOf<UnsupportedModelException>(), "it has no chat template");
        LlamaChatClient client = new(language, s_options with { DType = null });
        ChatResponse response = await client.GetResponseAsync("def add(a, b):");
        Assert.That(response.Text, Is.EqualTo((await _client.GetResponseAsync("def add(a, b):")).Text).And.Not.Empty);
        Assert.That(client.GetService(typeof(LanguageModel)), Is.SameAs(language));
        client.Dispose();
        Assert.That(language.Model.parameters().All(weight => weight.IsInvalid), "the client disposes it");
    }

    [Test]
    public async Task AChatThatGoesOnIsNotReadAgain()
    {
        List<ChatMessage> messages = [new(ChatRole.System, "Write Python."), new(ChatRole.User, "def add(a, b):")];
        ChatResponse first = await _client.GetResponseAsync(messages);
        messages.AddMessages(first);
        messages.Add(new ChatMessage(ChatRole.User, "class Stack:"));
        ChatResponse second = await _client.GetResponseAsync(messages);
        ChatResponse same = await _client.GetResponseAsync(messages);
        messages[1] = new ChatMessage(ChatRole.User, "def sub(a, b):");
        ChatResponse edited = await _client.GetResponseAsync(messages);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(second.Usage!.CachedInputTokenCount, Is.GreaterThanOrEqualTo(first.Usage!.InputTokenCount!));
            Assert.That(same.Usage!.CachedInputTokenCount, Is.EqualTo(second.Usage.InputTokenCount - 1), "generated anew: only the last is read");
            Assert.That(same.Text, Is.EqualTo(second.Text));
            Assert.That(edited.Usage!.CachedInputTokenCount, Is.Positive.And.LessThan(first.Usage.InputTokenCount!), "what the system says is the same");
        }
    }

    [Test]
    public async Task KeepsAsManyConversationsAsAsked()
    {
        using LlamaChatClient client = LlamaChatClient.Load(Golden.Checkpoint, s_options with { MaxConversations = 2, Cache = null });
        List<ChatMessage>[] chats = [.. new[] { "a = 1", "b = 2", "c = 3" }.Select(text => new List<ChatMessage> { new(ChatRole.User, text) })];
        long?[] read = new long?[3];
        for (int i = 0; i < 3; i++)
        {
            ChatResponse response = await client.GetResponseAsync(chats[i]);
            read[i] = response.Usage!.InputTokenCount;
            chats[i].AddMessages(response);
            chats[i].Add(new ChatMessage(ChatRole.User, "more"));
        }

        bool[] isCached = new bool[3];
        foreach (int i in (int[])[2, 1, 0])
        {
            // Of any chat the marks that begin it are cached.
            isCached[i] = (await client.GetResponseAsync(chats[i])).Usage!.CachedInputTokenCount >= read[i];
        }

        Assert.That(isCached, Is.EqualTo(new[] { false, true, true }), "the first was the oldest");
    }

    [Test]
    public async Task OptionsAreHeeded()
    {
        string greedy = (await _client.GetResponseAsync("def add(a, b):")).Text;
        async Task<string> Text(ChatOptions options) => (await _client.GetResponseAsync("def add(a, b):", options)).Text;
        ChatOptions drawn = new() { Temperature = 1.5f, Seed = 7 };
        string seven = await Text(drawn);
        ChatResponse stopped = await _client.GetResponseAsync("def add(a, b):", new ChatOptions { StopSequences = [greedy[5..8]] });
        ChatResponse instructed = await _client.GetResponseAsync("def add(a, b):", new ChatOptions { Instructions = "Write Python.", MaxOutputTokens = 3 });
        using (Assert.EnterMultipleScope())
        {
            Assert.That(await Text(drawn), Is.EqualTo(seven));
            Assert.That(await Text(new ChatOptions { Temperature = 1.5f, Seed = 8 }), Is.Not.EqualTo(seven));
            Assert.That(await Text(new ChatOptions { Temperature = 1.5f, Seed = 8, TopK = 1 }), Is.EqualTo(greedy));
            Assert.That(await Text(new ChatOptions { Temperature = 1.5f, Seed = 8, TopP = 1e-6f }), Is.EqualTo(greedy));
            Assert.That(await Text(new ChatOptions { PresencePenalty = 100 }), Is.Not.EqualTo(greedy));
            Assert.That(await Text(new ChatOptions { FrequencyPenalty = -100 }), Is.Not.EqualTo(greedy));
            Assert.That(stopped.Text, Is.EqualTo(greedy[..greedy.IndexOf(greedy[5..8], StringComparison.Ordinal)]));
            Assert.That(stopped.FinishReason, Is.EqualTo(ChatFinishReason.Stop));
            Assert.That(instructed.Usage!.OutputTokenCount, Is.EqualTo(3));
            Assert.That(instructed.Usage.InputTokenCount, Is.GreaterThan(stopped.Usage!.InputTokenCount!));
        }
    }

    [Test]
    public async Task CancellingEndsAReplyAndLeavesTheClientUsable()
    {
        using CancellationTokenSource source = new();
        int parts = 0;
        Assert.That(
            async () =>
            {
                await foreach (ChatResponseUpdate _ in _client.GetStreamingResponseAsync("def add(a, b):", cancellationToken: source.Token))
                {
                    parts++;
                    await source.CancelAsync();
                }
            },
            Throws.InstanceOf<OperationCanceledException>());
        await foreach (ChatResponseUpdate _ in _client.GetStreamingResponseAsync("def add(a, b):"))
        {
            break; // a caller that reads no further
        }

        ChatResponse response = await _client.GetResponseAsync("def add(a, b):");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(parts, Is.EqualTo(1));
            Assert.That(response.Usage!.OutputTokenCount, Is.EqualTo(12));
        }
    }

    [Test]
    public async Task RequestsOfSeveralThreadsWaitForOneAnother()
    {
        string[] prompts = ["a = 1", "b = 2", "c = 3", "d = 4"];
        string[] together = await Task.WhenAll(prompts.Select(async prompt => (await _client.GetResponseAsync(prompt)).Text));
        for (int i = 0; i < prompts.Length; i++)
        {
            Assert.That((await _client.GetResponseAsync(prompts[i])).Text, Is.EqualTo(together[i]));
        }
    }

    [Test]
    public async Task ARequestInProgressEndsBeforeTheModelIsFreed()
    {
        string expected = (await _client.GetResponseAsync("def add(a, b):")).Text;
        System.Text.StringBuilder text = new();
        Task<ChatResponse>? waiting = null;
        await foreach (ChatResponseUpdate update in _client.GetStreamingResponseAsync("def add(a, b):"))
        {
            waiting ??= _client.GetResponseAsync("a = 1");
            _client.Dispose();
            text.Append(update.Text);
        }

        Assert.That(text.ToString(), Is.EqualTo(expected));
        Assert.That(async () => await waiting!, Throws.TypeOf<ObjectDisposedException>());
        Assert.That(() => _client.GetResponseAsync("x"), Throws.TypeOf<ObjectDisposedException>());
    }

    private static IEnumerable<TestCaseData> Unsupported()
    {
        yield return Case("tools", new ChatOptions { Tools = [new HostedWebSearchTool()] }, "Tools are not supported");
        yield return Case("a tool's call", new ChatOptions { ToolMode = ChatToolMode.RequireAny }, "ToolMode");
        yield return Case("another property", new ChatOptions { AdditionalProperties = new() { ["num_ctx"] = 5 } }, "AdditionalProperties[\"num_ctx\"]");
        yield return Case("reasoning", new ChatOptions { Reasoning = new ReasoningOptions() }, "Reasoning");
        yield return Case("conversation", new ChatOptions { ConversationId = "1" }, "ConversationId");
        yield return Case("another model", new ChatOptions { ModelId = "gpt" }, "gpt");

        static TestCaseData Case(string name, ChatOptions options, string expected) => new TestCaseData(options, expected).SetArgDisplayNames(name);
    }

    [TestCaseSource(nameof(Unsupported))]
    public void WhatTheModelCannotDoIsRefused(ChatOptions options, string expected) => Assert.That(
        () => _client.GetResponseAsync("x", options), Throws.TypeOf<NotSupportedException>().With.Message.Contains(expected));

    [Test]
    public void MessagesThatTheModelCannotReadAreRefused()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(
                () => _client.GetResponseAsync(new ChatMessage(ChatRole.User, [new DataContent(new byte[] { 1 }, "image/png")])),
                Throws.TypeOf<NotSupportedException>().With.Message.Contains("DataContent"));
            Assert.That(() => _client.GetResponseAsync([]), Throws.ArgumentException);
            Assert.That(() => _client.GetResponseAsync("x", new ChatOptions { TopP = 2 }), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => _client.GetResponseAsync("x", new ChatOptions { MaxOutputTokens = 0 }), Throws.TypeOf<ArgumentOutOfRangeException>());
        }
    }

    [Test]
    public void TellsWhatItIs()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(_client.GetService<ChatClientMetadata>()!.DefaultModelId, Is.EqualTo("pyllama-14m"));
            Assert.That(_client.GetService<LlamaChatClient>(), Is.SameAs(_client));
            Assert.That(_client.GetService<LanguageModel>(), Is.Not.Null);
            Assert.That(_client.GetService<string>(), Is.Null);
            Assert.That(_client.GetService(typeof(IChatClient), "key"), Is.Null);
            Assert.That(() => new LlamaChatClientOptions { MaxConversations = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new LlamaChatClientOptions { MaxOutputTokens = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(
                () => LlamaChatClient.Load(Golden.Checkpoint),
                Throws.InstanceOf<Models.Checkpoint.UnsupportedModelException>().With.Message.Contains("no chat template"));
        }

        _client.Dispose();
        Assert.That(() => _client.GetResponseAsync("x"), Throws.TypeOf<ObjectDisposedException>());
    }
}
