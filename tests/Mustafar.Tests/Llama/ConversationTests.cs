using Mustafar.Examples.Llama.Chat;
using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;

namespace Mustafar.Tests.Llama;

/// <summary>Chats over one cache. The model is none for chats: what it says is code, but always the same.</summary>
[TestFixture]
public sealed class ConversationTests
{
    private static readonly ChatTurn s_first = new(ChatSpeaker.User, "def add(a, b):");
    private static readonly ChatTurn s_second = new(ChatSpeaker.User, "class Stack:");

    private LanguageModel _language = null!;
    private ChatModel _model = null!;

    [OneTimeSetUp]
    public void Load()
    {
        _language = LanguageModel.Load(Golden.Checkpoint, TorchSharp.torch.ScalarType.Float32);
        _model = ChatModel.Of(_language, "llama3");
    }

    [OneTimeTearDown]
    public void Unload() => _language.Dispose();

    // What the cache holds after an exchange is what was read and what the model said, token for token.
    [TestCase(7)]
    [TestCase(40)]
    public void LaterTurnsAreAnsweredAsIfAllWasReadAtOnce(int maxTokens)
    {
        using Conversation conversation = New();
        string first = Say(conversation, [s_first], maxTokens);
        int cached = conversation.CachedTokens;
        string second = Say(conversation, [s_second], maxTokens);
        ReplyUsage usage = conversation.LastUsage;
        (string expectedFirst, string expectedSecond, int tokens) = TwoReplies(maxTokens, maxTokens);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(first, Is.EqualTo(expectedFirst));
            Assert.That(second, Is.EqualTo(expectedSecond));
            Assert.That(usage.CachedTokens, Is.EqualTo(cached));
            Assert.That(usage.CachedTokens + usage.NewTokens, Is.EqualTo(tokens));
            Assert.That(usage.NewTokens, Is.LessThan(usage.CachedTokens));
            Assert.That(conversation.Turns.Select(turn => turn.Text), Is.EqualTo(new[] { s_first.Text, first, s_second.Text, second }));
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
            Assert.That(stopped.Turns[^1].Text, Is.EqualTo(reply));
            Assert.That(stopped.IsBeginningOf([.. stopped.Turns, s_second]), Is.False, "the cache has the stop sequence too");
        }

        // All is read anew, so that the answer is that to what was said.
        string next = Say(stopped, [s_second], 8);
        using Conversation atOnce = New();
        string expected = Say(atOnce, [s_first, new ChatTurn(ChatSpeaker.Assistant, reply), s_second], 8);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(next, Is.EqualTo(expected));
            Assert.That(stopped.LastUsage.CachedTokens, Is.Zero);
            Assert.That(stopped.IsBeginningOf([.. stopped.Turns, s_second]), Is.True);
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
        ChatTurn partial = new(ChatSpeaker.Assistant, string.Concat(heard));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(conversation.LastUsage.End, Is.EqualTo(ReplyEnd.Interrupted));
            Assert.That(conversation.Turns, Is.EqualTo(new[] { s_first, partial }));
        }

        (string said, string next, _) = TwoReplies(4, 8);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(partial.Text, Is.EqualTo(said));
            Assert.That(Say(conversation, [s_second], 8), Is.EqualTo(next));
        }
    }

    // A long turn is given up between layers.
    [TestCase(false)]
    [TestCase(true)]
    public void ATurnThatIsGivenUpWhileItIsReadIsNotSaid(bool isFirst)
    {
        CancellationTokenSource? source = null;
        using ModelCache cache = new(Enumerable.Range(0, _language.Model.Config.NumLayers).Select(layer => new WatchedCache(
            new DenseCache(1, _language.Model.Config.NumKvHeads, _language.Model.Config.HeadDim, _language.Model.DType),
            () =>
            {
                if (layer == 3)
                {
                    source?.Cancel();
                }
            })));
        using Conversation conversation = new(_model, cache);
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
        Assert.That(cache.Layers.Select(layer => layer.Length), Is.All.Zero);
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
        ChatTurn tooLong = new(ChatSpeaker.User, string.Concat(Enumerable.Repeat("word 12 ", 9000)));
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

    private static Sampler Greedy() => new(new SamplingOptions());

    private static string Say(Conversation conversation, ChatTurn[] turns, int maxTokens) =>
        string.Concat(conversation.Reply(turns, Greedy(), maxTokens));

    // The replies to two turns, each after reading everything anew, and the tokens read for the second.
    private (string First, string Second, int Tokens) TwoReplies(int maxFirst, int maxSecond)
    {
        List<int> ids = _model.Template.Encode(_language.Tokenizer, [s_first]);
        List<int> first = Generate(ids, maxFirst);
        ids.AddRange(first);
        ids.AddRange(_model.Template.Encode(_language.Tokenizer, [s_first, new ChatTurn(ChatSpeaker.Assistant, ""), s_second], 2));
        return (_language.Tokenizer.Decode(first), _language.Tokenizer.Decode(Generate(ids, maxSecond)), ids.Count);
    }

    private List<int> Generate(List<int> ids, int maxTokens)
    {
        using ModelCache cache = ModelCache.Dense(_language.Model);
        return [.. new TokenGenerator(_language.Model, cache).Generate(ids, Greedy(), maxTokens, _language.StopTokens)];
    }

    private Conversation New() => new(_model, ModelCache.Dense(_language.Model));
}
