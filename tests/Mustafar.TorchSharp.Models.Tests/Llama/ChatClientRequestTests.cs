using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.Extensions.AI;
using Mustafar.Extensions.AI;
using Mustafar.Models.Chat;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;

namespace Mustafar.Tests.Llama;

/// <summary>Requests of all kinds that clients send, on a tiny checkpoint of random weights.</summary>
[TestFixture]
internal sealed class ChatClientRequestTests
{
    // Writes all that it gets.
    private const string ShowAll = "{% for m in messages %}[{{ m.role }}|{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}{{ enable_thinking }}";

    private static readonly LlamaChatClientOptions s_options = new() { MaxOutputTokens = 6 };

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    private static IEnumerable<TestCaseData> Histories()
    {
        ChatMessage user = new(ChatRole.User, "Hi");
        yield return Case("late system and developer", [user, new(ChatRole.System, "S"), new(new ChatRole("developer"), "D")], "[user||Hi][system||S][developer||D]");
        yield return Case("first systems are one", [new(ChatRole.System, "S"), new(ChatRole.System, "T"), user], "[system||I\n\nS\n\nT][user||Hi]", new ChatOptions { Instructions = "I" });
        yield return Case("roles in any case", [new(new ChatRole("USER"), "Hi")], "[user||Hi]");
        yield return Case("a tool's result as text", [user, new(ChatRole.Tool, "5")], "[user||Hi][tool||5]");
        yield return Case("ends with a reply", [user, new(ChatRole.Assistant, "Yes")], "[user||Hi][assistant||Yes]");
        yield return Case("several contents", [new(ChatRole.User, [new TextContent("a"), new TextContent(null), new TextContent("b")])], "[user||ab]");
        yield return Case(
            "what a former reply has beside text",
            [user, new(ChatRole.Assistant, [new TextReasoningContent("Hm"), new TextContent("Yes"), new UsageContent(new UsageDetails()), new ErrorContent("e")]), user],
            "[user||Hi][assistant|Hm|Yes][user||Hi]");
        yield return Case("JSON", [user, new(ChatRole.Assistant, "Yes")], "[user||Hi\n\nRespond with JSON only, without any other text.][assistant||Yes]", new ChatOptions { ResponseFormat = ChatResponseFormat.Json });
        yield return Case("plain text", [user], "[user||Hi]", new ChatOptions { ResponseFormat = ChatResponseFormat.Text });
        yield return Case("an empty model id", [user], "[user||Hi]", new ChatOptions { ModelId = "" });
        foreach (object kwargs in (object[])[new Dictionary<string, object?> { ["enable_thinking"] = false }, new { enable_thinking = false }, JsonNode.Parse("""{ "enable_thinking": false }""")!])
        {
            yield return Case($"kwargs as {kwargs.GetType().Name}", [user], "[user||Hi]False", new ChatOptions { AdditionalProperties = new() { ["chat_template_kwargs"] = kwargs } });
        }

        static TestCaseData Case(string name, ChatMessage[] messages, string expected, ChatOptions? options = null) =>
            new TestCaseData(messages, options, expected).SetArgDisplayNames(name);
    }

    [TestCaseSource(nameof(Histories))]
    public async Task MessagesReachTheTemplate(ChatMessage[] messages, ChatOptions? options, string expected)
    {
        using LlamaChatClient client = Client(ShowAll);
        ChatResponse response = await client.GetResponseAsync(messages, options);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Turns(messages, options, client), Is.EqualTo(expected));
            Assert.That(response.Usage!.InputTokenCount, Is.EqualTo(expected.Length), "a token for each byte");
            Assert.That(response.Text, Is.EqualTo("kkkkkk"));
        }
    }

    private static IEnumerable<TestCaseData> Refused()
    {
        ChatMessage user = new(ChatRole.User, "Hi");
        yield return Case("a null message", [user, null!], null, "messages", "messages[1] is null");
        yield return Case("a null content", [new(ChatRole.User, [null!])], null, "messages", "messages[0].Contents[0] is null");
        yield return Case("no messages", [], null, "messages", "at least one");
        yield return Case("too long", [new(ChatRole.User, new string('x', 3000))], null, "messages", "context is 2048");
        yield return Case("refused by the template", [new(new ChatRole("nobody"), "x")], null, "messages", "Not nobody");
        yield return Case("an empty stop sequence", [user], new ChatOptions { StopSequences = [""] }, "options", "StopSequences");
        yield return Case("kwargs of another kind", [user], Kwargs("x"), "options", "chat_template_kwargs");
        yield return Case("kwargs of the chat", [user], Kwargs(new { messages = 5 }), "options", "'messages'");
        yield return Case("kwargs with half a surrogate pair", [user], Kwargs(JsonDocument.Parse("""{ "a": "\ud800" }""").RootElement), "options", "chat_template_kwargs");
        yield return Case("kwargs that are no JSON", [user], Kwargs(new { a = double.NaN }), "options", "chat_template_kwargs");
        yield return Case("top-p", [user], new ChatOptions { TopP = 7 }, "TopP", "probability");
        yield return Case("no tokens", [user], new ChatOptions { MaxOutputTokens = 0 }, "MaxOutputTokens", "0");

        static ChatOptions Kwargs(object value) => new() { AdditionalProperties = new() { ["chat_template_kwargs"] = value } };

        static TestCaseData Case(string name, ChatMessage[] messages, ChatOptions? options, string parameter, string problem) =>
            new TestCaseData(messages, options, parameter, problem).SetArgDisplayNames(name);
    }

    // In the task, in terms of what the caller passed, and without harm to another chat's cache.
    [TestCaseSource(nameof(Refused))]
    public async Task WhatIsRefusedCostsNothing(ChatMessage[] messages, ChatOptions? options, string parameter, string problem)
    {
        using LlamaChatClient client = Client("{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('Not nobody') }}{% endif %}" + ShowAll[(ShowAll.IndexOf('%') + "% for m in messages %}".Length)..]);
        ChatMessage[] chat = [new(ChatRole.User, new string('c', 100))];
        await client.GetResponseAsync(chat);
        Task<ChatResponse> task = client.GetResponseAsync(messages, options);
        IAsyncEnumerable<ChatResponseUpdate> stream = client.GetStreamingResponseAsync(messages, options);
        ArgumentException error = (await Assert.CatchAsync<ArgumentException>(() => task))!;
        await Assert.CatchAsync<ArgumentException>(async () => await stream.GetAsyncEnumerator().MoveNextAsync());
        ChatResponse again = await client.GetResponseAsync(chat);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(error.ParamName, Is.EqualTo(parameter));
            Assert.That(error.Message, Does.Contain(problem));
            Assert.That(again.Usage!.CachedInputTokenCount, Is.EqualTo(again.Usage.InputTokenCount - 1));
        }
    }

    [Test]
    public void NullMessagesAreAnErrorOfTheTask()
    {
        using LlamaChatClient client = Client(TinyCheckpoint.Template);
        Task<ChatResponse> task = client.GetResponseAsync((IEnumerable<ChatMessage>)null!);
        Assert.That(async () => await task, Throws.ArgumentNullException.With.Property("ParamName").EqualTo("messages"));
    }

    [Test]
    public void ASchemaStandsInTheLastMessageOfTheUser()
    {
        using JsonDocument schema = JsonDocument.Parse("""{ "type": "integer" }""");
        ChatOptions options = new() { ResponseFormat = ChatResponseFormat.ForJsonSchema(schema.RootElement) };
        ChatMessage[] messages = [new(ChatRole.System, "S"), new(ChatRole.User, "a"), new(ChatRole.Assistant, "b"), new(ChatRole.User, "c")];
        List<ChatTurn> turns = ChatTurns.Read(messages, null, options.ResponseFormat);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(turns.SkipLast(1).Select(turn => turn.Content), Is.EqualTo(new[] { "S", "a", "b" }));
            Assert.That(turns[^1].Content, Does.StartWith("c\n\nRespond with JSON").And.EndsWith("""{ "type": "integer" }"""));
        }
    }

    [Test]
    public async Task AStreamThatNobodyReadsOnDoesNotBlockTheClient()
    {
        using LlamaChatClient client = Client(TinyCheckpoint.Template);
        IAsyncEnumerator<ChatResponseUpdate> dropped = client.GetStreamingResponseAsync("a").GetAsyncEnumerator();
        Assert.That(await dropped.MoveNextAsync());
        ChatResponse response = await client.GetResponseAsync("b").WaitAsync(TimeSpan.FromMinutes(1));
        Assert.That(response.Text, Is.EqualTo("kkkkkk"));
        Assert.That(await dropped.MoveNextAsync(), "it can still be read");
        await dropped.DisposeAsync();
    }

    // The model is held in the middle of a layer: the caller waits for none, nor does whoever waits for the model.
    [Test]
    public async Task CancellingTakesEffectWhileTheModelIsInALayer()
    {
        _directory.WithTinyCheckpoint();
        using ManualResetEventSlim isInLayer = new(), goOn = new();
        LanguageModel language = LanguageModel.Load(_directory.Path);
        using LlamaChatClient client = new(new ChatModel(language, ChatTemplate.Load(_directory.Path)), s_options, () => LayerCaches.Of(
            Enumerable.Range(0, 2).Select(_ => new WatchedCache(
                new DenseCache(1, new() { NumKvHeads = 1, HeadDim = 64 }, language.Model.DType),
                () =>
                {
                    isInLayer.Set();
                    goOn.Wait();
                }))));
        using CancellationTokenSource source = new(), other = new();
        Task<ChatResponse> task = client.GetResponseAsync("a long prompt", cancellationToken: source.Token);
        Task<ChatResponse> waiting = client.GetResponseAsync("another", cancellationToken: other.Token);
        isInLayer.Wait();
        await source.CancelAsync();
        await other.CancelAsync();
        TimeSpan patience = TimeSpan.FromMinutes(1);
        OperationCanceledException error = (await Assert.CatchAsync<OperationCanceledException>(() => task.WaitAsync(patience)))!;
        await Assert.CatchAsync<OperationCanceledException>(() => waiting.WaitAsync(patience));
        Task<ChatResponse> next = client.GetResponseAsync("a");
        Assert.That(next.IsCompleted, Is.False, "the layer has not ended yet");
        goOn.Set();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(error.CancellationToken, Is.EqualTo(source.Token));
            Assert.That((await next).Text, Is.EqualTo("kkkkkk"));
            Assert.That((await next).Usage!.CachedInputTokenCount, Is.Zero, "nothing is left of the prompt that was given up");
        }
    }

    // Its length would be refused once it is encoded.
    [Test]
    public async Task CancellingStopsTheEncodingOfALongText()
    {
        using LlamaChatClient client = Client(TinyCheckpoint.Template);
        using CancellationTokenSource source = new(TimeSpan.FromMilliseconds(50));
        await Assert.CatchAsync<OperationCanceledException>(() => client.GetResponseAsync(new string('x', 20_000_000), cancellationToken: source.Token));
        Assert.That((await client.GetResponseAsync("a")).Text, Is.EqualTo("kkkkkk"));
    }

    [Test]
    public async Task TheCheckpointTellsHowTokensAreChosenWhereARequestDoesNot()
    {
        _directory.WithTinyCheckpoint(favourite: null);
        File.WriteAllText(_directory.File("generation_config.json"), """{ "do_sample": true, "temperature": 5.0, "top_k": 0 }""");
        using LlamaChatClient client = LlamaChatClient.Load(_directory.Path, s_options with { MaxOutputTokens = 20 });
        async Task<string> Text(ChatOptions options) => (await client.GetResponseAsync("a", options)).Text;
        using (Assert.EnterMultipleScope())
        {
            Assert.That(await Text(new ChatOptions { Seed = 1 }), Is.EqualTo(await Text(new ChatOptions { Seed = 1, Temperature = 5, TopK = 0, TopP = 1 })));
            Assert.That(await Text(new ChatOptions { Seed = 1 }), Is.Not.EqualTo(await Text(new ChatOptions { Seed = 2 })));
            Assert.That(await Text(new ChatOptions { Seed = 1, Temperature = 0 }), Is.EqualTo(await Text(new ChatOptions { Seed = 2, Temperature = 0 })));
        }
    }

    [Test]
    public async Task AnIdIsTheDirectorysName()
    {
        _directory.WithTinyCheckpoint();
        using LlamaChatClient client = LlamaChatClient.Load(_directory.Path + Path.DirectorySeparatorChar, s_options);
        ChatResponse response = await client.GetResponseAsync("a", new ChatOptions { ModelId = Path.GetFileName(_directory.Path) });
        Assert.That(response.ModelId, Is.EqualTo(Path.GetFileName(_directory.Path)));
    }

    [Test]
    public void ATemplateThatIsMissingIsToldBeforeTheWeightsAreRead()
    {
        _directory.WithTinyCheckpoint();
        File.Delete(_directory.File("model.safetensors"));
        Assert.That(
            () => LlamaChatClient.Load(_directory.Path, s_options with { ChatTemplate = "none" }),
            Throws.ArgumentException.With.Message.Contains("'none'"));
        File.WriteAllText(_directory.File("tokenizer_config.json"), """{ "chat_template": "{% if %}" }""");
        Assert.That(() => LlamaChatClient.Load(_directory.Path), Throws.TypeOf<UnsupportedModelException>().With.Message.Contains("line 1"));
    }

    private LlamaChatClient Client(string template)
    {
        _directory.WithTinyCheckpoint(template: template);
        return LlamaChatClient.Load(_directory.Path, s_options);
    }

    private static string Turns(ChatMessage[] messages, ChatOptions? options, LlamaChatClient client)
    {
        ChatRequest request = ChatRequest.Read(messages, options, new ChatRequestDefaults(null, SamplingParameters.Greedy, 1));
        ChatModel model = new(client.GetService<LanguageModel>()!, ChatTemplate.Load(client.GetService<LanguageModel>()!.Directory));
        return model.Language.Tokenizer.Decode(model.Encode(request.Turns, request.TemplateVariables), skipSpecialTokens: false);
    }
}
