using Mustafar.Models.Chat;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Tests.Llama;

/// <summary>Chats over one cache. The model is none for chats: what it says is code, but always the same.</summary>
[TestFixture]
public sealed class ConversationTests
{
    private static readonly ChatTurn s_first = new(ChatRoles.User, "def add(a, b):");
    private static readonly ChatTurn s_second = new(ChatRoles.User, "class Stack:");

    private LanguageModel _language = null!;
    private ChatModel _model = null!;

    [OneTimeSetUp]
    public void Load()
    {
        _language = LanguageModel.Load(Golden.Checkpoint, TorchSharp.torch.ScalarType.Float32);
        _model = new ChatModel(_language, ChatTemplate.Load(Golden.Checkpoint, "llama3"));
    }

    [OneTimeTearDown]
    public void Unload() => _language.Dispose();

    // Also where the template trims the reply before it is read again, and where its text has other tokens than were generated.
    [TestCase(7)]
    [TestCase(40)]
    public void LaterTurnsAreAnsweredAsIfAllWasReadAtOnce(int maxTokens)
    {
        using Conversation conversation = New();
        string first = Say(conversation, [s_first], maxTokens);
        string second = Say(conversation, [s_second], maxTokens);
        ReplyUsage usage = conversation.LastUsage;
        (string expectedFirst, string expectedSecond, int tokens) = TwoReplies(maxTokens, maxTokens);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(first, Is.EqualTo(expectedFirst));
            Assert.That(second, Is.EqualTo(expectedSecond));
            Assert.That(usage.CachedTokens + usage.NewTokens, Is.EqualTo(tokens));
            Assert.That(usage.CachedTokens, Is.GreaterThanOrEqualTo(_model.Encode([s_first]).Count));
            Assert.That(conversation.Turns.Select(turn => turn.Content), Is.EqualTo(new[] { s_first.Content, first, s_second.Content, second }));
        }
    }

    [Test]
    public void EndsOfRepliesAreTold()
    {
        using Conversation plain = New();
        List<string> parts = [.. plain.Reply([s_first], Greedy(), 5)];
        Assert.That(plain.LastUsage, Is.EqualTo(new ReplyUsage(0, plain.LastUsage.NewTokens, 5, ReplyEnd.Length)));
        using Conversation stopped = New();
        string whole = string.Concat(parts);
        string sequence = whole[^3..];
        string reply = string.Concat(stopped.Reply([s_first], Greedy(), 50, [sequence, "no such text"]));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(reply, Is.EqualTo(whole[..whole.IndexOf(sequence, StringComparison.Ordinal)]));
            Assert.That(stopped.LastUsage.End, Is.EqualTo(ReplyEnd.Stop));
            Assert.That(stopped.Turns[^1].Content, Is.EqualTo(reply));
        }

        // The cache has the stop sequence too, which was not said.
        string next = Say(stopped, [s_second], 8);
        using Conversation atOnce = New();
        string expected = Say(atOnce, [s_first, new ChatTurn(ChatRoles.Assistant, reply), s_second], 8);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(next, Is.EqualTo(expected));
            Assert.That(stopped.LastUsage.CachedTokens, Is.Positive);
        }
    }

    [Test]
    public void WhatWasSaidUntilAnInterruptionStaysSaid()
    {
        using Conversation conversation = New();
        using CancellationTokenSource source = new();
        List<string> heard = [];
        Assert.That(
            () =>
            {
                foreach (string part in conversation.Reply([s_first], Greedy(), 50, cancellationToken: source.Token))
                {
                    heard.Add(part);
                    if (heard.Count == 4)
                    {
                        source.Cancel();
                    }
                }
            },
            Throws.InstanceOf<OperationCanceledException>());
        ChatTurn partial = new(ChatRoles.Assistant, string.Concat(heard));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(conversation.LastUsage.End, Is.EqualTo(ReplyEnd.Interrupted));
            Assert.That(conversation.Turns, Is.EqualTo(new[] { s_first, partial }));
        }

        (string said, string next, _) = TwoReplies(4, 8);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(partial.Content, Is.EqualTo(said));
            Assert.That(Say(conversation, [s_second], 8), Is.EqualTo(next));
        }
    }

    // A long turn is given up between layers.
    [TestCase(false)]
    [TestCase(true)]
    public void ATurnThatIsGivenUpWhileItIsReadIsNotSaid(bool isFirst)
    {
        CancellationTokenSource? source = null;
        KeyValueCache[] layers = [.. Enumerable.Range(0, _language.Model.Config.NumLayers).Select(layer => new WatchedCache(
            new DenseCache(1, _language.Model.Config.KeyValueShape, _language.Model.DType),
            () =>
            {
                if (layer == 3)
                {
                    source?.Cancel();
                }
            }))];
        using Conversation conversation = new(_model, LayerCaches.Of(layers));
        if (!isFirst)
        {
            Say(conversation, [s_first], 5);
        }

        ChatTurn[] before = [.. conversation.Turns];
        using (source = new CancellationTokenSource())
        {
            Assert.That(
                () => conversation.Reply([s_second], Greedy(), 5, cancellationToken: source.Token).Count(),
                Throws.InstanceOf<OperationCanceledException>());
            source = null;
        }

        Assert.That(conversation.Turns, Is.EqualTo(before));
        Assert.That(layers.Select(layer => layer.Length), Is.All.EqualTo(conversation.CachedTokens));
        Assert.That(conversation.CachedTokens > 0, Is.EqualTo(!isFirst), "what the turn has in common with the chat stays read");
        using Conversation other = New();
        Assert.That(Say(conversation, [s_second], 8), Is.EqualTo(Say(other, [.. before, s_second], 8)));
    }

    [Test]
    public void RefusedTurnsLeaveTheChatAsItWas()
    {
        using Conversation conversation = New();
        Say(conversation, [s_first], 3);
        ChatTurn[] before = [.. conversation.Turns];
        int cached = conversation.CachedTokens;
        ChatTurn tooLong = new(ChatRoles.User, string.Concat(Enumerable.Repeat("word 12 ", 9000)));
        using ModelCache used = ModelCache.Dense(_language.Model);
        int[] one = [.. new TokenGenerator(_language.Model, used).Generate([1, 2], Greedy(), 1, new HashSet<int>())];
        Assert.That(one, Has.Length.EqualTo(1));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => conversation.Reply([tooLong], Greedy(), 3), Throws.ArgumentException.With.Message.Contains("at most"));
            Assert.That(() => conversation.Reply([], Greedy(), 3), Throws.InstanceOf<ArgumentException>());
            Assert.That(() => conversation.Reply([s_second], Greedy(), 0), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => conversation.Reply([s_second], Greedy(), 3, [""]), Throws.ArgumentException);
            Assert.That(
                () => conversation.Reply([s_second], Greedy(), 3, cancellationToken: new CancellationToken(true)).Count(),
                Throws.InstanceOf<OperationCanceledException>());
            Assert.That(conversation.Turns, Is.EqualTo(before));
            Assert.That(conversation.CachedTokens, Is.EqualTo(cached));
            Assert.That(() => new Conversation(_model, used), Throws.ArgumentException.With.Message.Contains("empty"));
        }
    }

    [TestCase(new[] { "a", "b", "STOP", "c" }, new[] { "STOP" }, "ab")]
    [TestCase(new[] { "aS", "TO", "x", "ST" }, new[] { "STOP" }, "aSTOxST")]
    [TestCase(new[] { "aST", "OPb", "STOP" }, new[] { "STOP" }, "a")]
    [TestCase(new[] { "xyz" }, new[] { "z", "y" }, "x")]
    [TestCase(new[] { "aab", "aac" }, new[] { "aac" }, "aab")]
    [TestCase(new[] { "any", "thing" }, new string[0], "anything")]
    public void StopSequencesMayBeSpreadOverParts(string[] parts, string[] sequences, string expected)
    {
        StopSequences stops = new(sequences);
        string text = string.Concat(parts.Select(stops.Append)) + stops.Finish();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(text, Is.EqualTo(expected));
            Assert.That(stops.IsFound, Is.EqualTo(sequences.Any(string.Concat(parts).Contains)));
        }
    }

    private static Sampler Greedy() => new(SamplingParameters.Greedy);

    private static string Say(Conversation conversation, ChatTurn[] turns, int maxTokens) =>
        string.Concat(conversation.Reply(turns, Greedy(), maxTokens));

    // The replies to two turns, each after reading everything anew, and the tokens read for the second.
    private (string First, string Second, int Tokens) TwoReplies(int maxFirst, int maxSecond)
    {
        string first = _language.Tokenizer.Decode(Generate(_model.Encode([s_first]), maxFirst));
        List<int> prompt = _model.Encode([s_first, new ChatTurn(ChatRoles.Assistant, first), s_second]);
        return (first, _language.Tokenizer.Decode(Generate(prompt, maxSecond)), prompt.Count);
    }

    private List<int> Generate(List<int> ids, int maxTokens)
    {
        using ModelCache cache = ModelCache.Dense(_language.Model);
        return [.. new TokenGenerator(_language.Model, cache).Generate(ids, Greedy(), maxTokens, _model.StopTokens)];
    }

    private Conversation New() => new(_model, ModelCache.Dense(_language.Model));
}
