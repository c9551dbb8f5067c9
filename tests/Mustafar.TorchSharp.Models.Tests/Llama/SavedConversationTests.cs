using Mustafar.Models.Chat;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Tests.Llama;

/// <summary>A chat that was saved goes on as if it had never ended.</summary>
[TestFixture]
internal sealed class SavedConversationTests
{
    private static readonly ChatTurn s_first = new(ChatRoles.User, "def add(a, b):");
    private static readonly ChatTurn s_second = new(ChatRoles.User, "class Stack: # \"ünï\" 👍");
    private static readonly MustafarOptions s_options = new() { LocalWindow = 0, GroupSize = 32 };

    private LanguageModel _language = null!;
    private ChatModel _model = null!;
    private TemporaryDirectory _directory = null!;

    private string Path => _directory.File("chat");

    [OneTimeSetUp]
    public void Load()
    {
        _language = LanguageModel.Load(Golden.Checkpoint, TorchSharp.torch.ScalarType.Float32);
        _model = new ChatModel(_language, ChatTemplate.Load(Golden.Checkpoint, "llama3"));
    }

    [OneTimeTearDown]
    public void Unload() => _language.Dispose();

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [TestCase(7)]
    [TestCase(60)]
    [TestCase(60, 4)]
    public void ASavedChatGoesOnAndReadsOnlyWhatIsNew(int maxTokens, int bits = 16)
    {
        using Conversation conversation = new(_model, NewCache(bits));
        Say(conversation, s_first, maxTokens);
        conversation.Save(Path);
        using Conversation restored = Conversation.Load(Path, _model, NewCache(bits));
        Assert.That(restored.Turns, Is.EqualTo(conversation.Turns));
        Assert.That(restored.CachedTokens, Is.EqualTo(conversation.CachedTokens).And.Positive);
        Assert.That(Say(restored, s_second, 20), Is.EqualTo(Say(conversation, s_second, 20)));
        Assert.That(restored.LastUsage, Is.EqualTo(conversation.LastUsage));

        restored.Save(Path);
        using Conversation again = Conversation.Load(Path, _model, NewCache(bits));
        Assert.That(again.Turns, Has.Count.EqualTo(4));
        Assert.That(Say(again, s_first, 20), Is.EqualTo(Say(conversation, s_first, 20)));
    }

    [Test]
    public void SoDoesAnEmptyChatAndOneWithAStopSequence()
    {
        using Conversation conversation = new(_model, NewCache());
        conversation.Save(Path);
        using (Conversation empty = Conversation.Load(Path, _model, NewCache()))
        {
            Assert.That(empty.Turns, Is.Empty);
            string reply = Say(empty, s_first, 10);
            string stop = reply[^3..];
            Assert.That(string.Concat(conversation.Reply([s_first], Greedy(), 50, [stop])), Is.EqualTo(reply[..reply.IndexOf(stop, StringComparison.Ordinal)]));
        }

        Assert.That(conversation.LastUsage.End, Is.EqualTo(ReplyEnd.Stop), "the cache holds the stop sequence, too");
        conversation.Save(Path);
        using Conversation restored = Conversation.Load(Path, _model, NewCache());
        Assert.That(restored.CachedTokens, Is.EqualTo(conversation.CachedTokens));
        Assert.That(Say(restored, s_second, 10), Is.EqualTo(Say(conversation, s_second, 10)));
        Assert.That(restored.LastUsage, Is.EqualTo(conversation.LastUsage));
    }

    [Test]
    public void AChatOfAnotherModelOrKindIsRefused()
    {
        using (Conversation conversation = new(_model, NewCache()))
        {
            Say(conversation, s_first, 5);
            conversation.Save(Path);
        }

        using ModelCache cache = NewCache(), dense = ModelCache.Dense(_language.Model);
        using ModelCache other = ModelCache.Mustafar(_language.Model, s_options with { KeySparsity = 0.5 });
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Refused(_model, other), Does.Contain("keys_kept"));
            Assert.That(() => Conversation.Load(Path, _model, dense), Throws.TypeOf<NotSupportedException>().With.Message.Contains(nameof(DenseModelCache)));
            Assert.That(() => Conversation.Load(_directory.File("none"), _model, cache), Throws.TypeOf<FileNotFoundException>());
            foreach ((string chat, string problem) in new[]
            {
                ("""{"turns":[],"tokens":[]}""", "expected the ids of"),
                ("""{"turns":[],"tokens":[1,2,-1]}""", "expected the ids of"),
                ("""{"turns":[null],"tokens":TOKENS}""", "turns"),
                ("""{"turns":[{"role":"assistant","content":null}],"tokens":TOKENS}""", "expected a chat"),
                ("""{"turns":[{"content":"a"}],"tokens":TOKENS}""", "expected a chat"),
                ("""{"template":"llama3","turns":[]}""", "expected a chat"),
                ("null", "expected a chat"),
                ("[", "expected a chat"),
            })
            {
                using ModelCache filled = NewCache();
                IReadOnlyDictionary<string, string> metadata = filled.Load(Path, _language.Fingerprint);
                Assert.That(metadata.Keys, Is.EqualTo(new[] { "chat" }));
                string tokens = $"[{string.Join(',', Enumerable.Range(0, filled.Length))}]";
                filled.Save(_directory.File("changed"), _language.Fingerprint, new Dictionary<string, string> { ["chat"] = chat.Replace("TOKENS", tokens) });
                Assert.That(
                    () => Conversation.Load(_directory.File("changed"), _model, cache),
                    Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains(problem),
                    chat);
                Assert.That(cache.Length, Is.Zero);
            }

            using (ModelCache filled = NewCache())
            {
                filled.Load(Path, _language.Fingerprint);
                filled.Save(_directory.File("text"), _language.Fingerprint);
                Assert.That(() => Conversation.Load(_directory.File("text"), _model, cache), Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("saved chat"));
                filled.Save(_directory.File("text"), "another");
                Assert.That(() => Conversation.Load(_directory.File("text"), _model, cache), Throws.TypeOf<MustafarCacheFileException>().With.Message.Contains("another model"));
            }
        }

        using Conversation fine = Conversation.Load(Path, _model, cache);
        Assert.That(fine.Turns, Has.Count.EqualTo(2));

        string Refused(ChatModel model, ModelCache into)
        {
            string message = Assert.Throws<MustafarCacheFileException>(() => Conversation.Load(Path, model, into))!.Message;
            Assert.That(into.Length, Is.Zero);
            return message;
        }
    }

    [Test]
    public void AnotherTemplateReadsMoreAnew()
    {
        using Conversation conversation = new(_model, NewCache());
        Say(conversation, new ChatTurn(ChatRoles.User, string.Concat(Enumerable.Repeat("x = 1 # text\n", 20))), 10);
        conversation.Save(Path);
        File.WriteAllText(_directory.File("other.jinja"), "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}");
        ChatModel other = new(_language, ChatTemplate.Load(Golden.Checkpoint, _directory.File("other.jinja")));
        using Conversation restored = Conversation.Load(Path, other, NewCache());
        Say(restored, s_second, 5);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(restored.LastUsage.CachedTokens, Is.Zero);
            Assert.That(restored.LastUsage.NewTokens, Is.EqualTo(other.Encode([.. restored.Turns.SkipLast(1)]).Count));
            Assert.That(restored.Turns, Has.Count.EqualTo(4));
        }
    }

    [Test]
    public void TheFingerprintTellsCheckpointsApart()
    {
        using TemporaryDirectory copy = new TemporaryDirectory().With(Golden.Checkpoint);
        string Fingerprint()
        {
            using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(copy.Path);
            return ModelFingerprint.Of(copy.File("config.json"), checkpoint);
        }

        string original = Fingerprint();
        Assert.That(original, Is.EqualTo(_language.Fingerprint).And.Length.EqualTo(64));
        string config = File.ReadAllText(copy.File("config.json"));
        File.WriteAllText(copy.File("config.json"), config.Replace("\"rope_theta\": ", "\"rope_theta\": 1"));
        Assert.That(Fingerprint(), Is.Not.EqualTo(original));
        File.WriteAllText(copy.File("config.json"), config);
        Assert.That(Fingerprint(), Is.EqualTo(original));

        // The first and the last byte of some tensor.
        string shard = Directory.GetFiles(copy.Path, "*.safetensors").Order(StringComparer.Ordinal).First();
        byte[] bytes = File.ReadAllBytes(shard);
        foreach (int at in new[] { 8 + BitConverter.ToInt32(bytes), bytes.Length - 1 })
        {
            bytes[at] ^= 1;
            File.WriteAllBytes(shard, bytes);
            Assert.That(Fingerprint(), Is.Not.EqualTo(original));
            bytes[at] ^= 1;
        }
    }

    // One byte anywhere, such as a row of the embedding that was trained further.
    [Test]
    public void TheFingerprintTellsTinyCheckpointsApartThatDifferInAByte([Values(0.2, 0.37, 0.61, 0.83)] double place)
    {
        using TemporaryDirectory tiny = new TemporaryDirectory().WithTinyCheckpoint(config => config["intermediate_size"] = 512);
        string Fingerprint()
        {
            using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(tiny.Path);
            return ModelFingerprint.Of(tiny.File("config.json"), checkpoint);
        }

        string original = Fingerprint();
        byte[] bytes = File.ReadAllBytes(tiny.File("model.safetensors"));
        bytes[8 + BitConverter.ToInt32(bytes) + (int)(place * (bytes.Length - 8 - BitConverter.ToInt32(bytes)))] ^= 1;
        File.WriteAllBytes(tiny.File("model.safetensors"), bytes);
        Assert.That(Fingerprint(), Is.Not.EqualTo(original));
    }

    private static Sampler Greedy() => new(SamplingParameters.Greedy);

    private static string Say(Conversation conversation, ChatTurn turn, int maxTokens) =>
        string.Concat(conversation.Reply([turn], Greedy(), maxTokens));

    private ModelCache NewCache(int bits = 16) => ModelCache.Mustafar(_language.Model, s_options with { KeyBits = bits, ValueBits = bits });
}
