using Microsoft.Extensions.AI;
using Mustafar.Extensions.AI;

namespace Mustafar.Tests.Llama;

/// <summary>The chat client within what applications build of Microsoft.Extensions.AI.</summary>
[TestFixture]
internal sealed class ChatClientPipelineTests
{
    private sealed record Answer(int Value);

    // The tiny model says k all the time, which is no JSON; a real one reads what is asked for.
    [Test]
    public async Task TypedRepliesAreAskedForInThePrompt([Values] bool asResponseFormat)
    {
        using TemporaryDirectory directory = new TemporaryDirectory().WithTinyCheckpoint();
        using LlamaChatClient client = LlamaChatClient.Load(directory.Path, new LlamaChatClientOptions { MaxOutputTokens = 6 });
        ChatResponse plain = await client.GetResponseAsync("How many?");
        ChatResponse<Answer> typed = await client.GetResponseAsync<Answer>("How many?", useJsonSchemaResponseFormat: asResponseFormat);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(typed.TryGetResult(out _), Is.False);
            Assert.That(typed.Text, Is.EqualTo("kkkkkk"));
            int schema = "{\"type\":\"object\",\"properties\":{\"value\":".Length;
            Assert.That(typed.Usage!.InputTokenCount, Is.GreaterThan(plain.Usage!.InputTokenCount!.Value + schema), "a token for each letter");
        }
    }

    // Systems in common, and of several lengths; a pipeline of calls of tools, of which there are none.
    [Test]
    public async Task RequestsAtOnceAreAnsweredAsOneAfterAnother([Values(null, 16, 8)] int? bits)
    {
        LlamaChatClientOptions options = new()
        {
            ChatTemplate = "llama3",
            DType = TorchSharp.torch.ScalarType.Float32,
            MaxOutputTokens = 12,
            Cache = bits is int stored ? new MustafarOptions { LocalWindow = 0, GroupSize = 32, KeyBits = stored, ValueBits = stored } : null,
            PrefixCaching = bits is null,
            MaxConversations = 3,
        };
        using IChatClient client = new ChatClientBuilder(LlamaChatClient.Load(Golden.Checkpoint, options)).UseFunctionInvocation().Build();
        string system = string.Concat(Enumerable.Repeat("x = 1 # text\n", 15));
        ChatMessage[][] chats = [.. Enumerable.Range(0, 8).Select(i => (ChatMessage[])
        [
            new(ChatRole.System, system), new(ChatRole.User, $"def f{i}({string.Join(", ", Enumerable.Range(0, 3 * i).Select(j => $"x{j}"))}):"),
        ])];
        string[] together = await Task.WhenAll(chats.Select(chat => Task.Run(async () => (await client.GetResponseAsync(chat)).Text)));
        for (int i = 0; i < chats.Length; i++)
        {
            Assert.That((await client.GetResponseAsync(chats[i])).Text, Is.EqualTo(together[i]), $"chat {i}");
        }

        Assert.That(together.Distinct().Count(), Is.GreaterThan(4), "they have replies of their own");
    }

    [Test]
    public async Task TheReadmesExampleRuns()
    {
        string[] shown = [.. ShownCode.OfMarkdown(
            RepositoryFiles.Read("README.md").Split("\n## ").Single(section => section.StartsWith("The example\n", StringComparison.Ordinal)))];
        Assert.That(shown, Has.Length.GreaterThan(5));
        Assert.That(shown, Is.SubsetOf(ShownCode.OfSource("tests/Mustafar.TorchSharp.Models.Tests/Llama/ChatClientPipelineTests.cs")));

        using StringWriter written = new();
        (TextWriter console, string directory) = (Console.Out, Environment.CurrentDirectory);
        try
        {
            Console.SetOut(written);
            Environment.CurrentDirectory = RepositoryFiles.Root;
            await Example();
        }
        finally
        {
            Console.SetOut(console);
            Environment.CurrentDirectory = directory;
        }

        Assert.That(written.ToString(), Is.Not.Empty);
    }

    private static async Task Example()
    {
        LlamaChatClientOptions options = new() { ChatTemplate = "llama3" };
        using IChatClient client = LlamaChatClient.Load("examples/Llama/checkpoint/pyllama-14m", options);
        ChatOptions request = new() { MaxOutputTokens = 40 };
        await foreach (ChatResponseUpdate update in client.GetStreamingResponseAsync("def add(a, b):", request))
        {
            Console.Write(update.Text);
        }
    }
}
