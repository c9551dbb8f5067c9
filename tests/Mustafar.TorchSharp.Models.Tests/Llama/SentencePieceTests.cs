using System.Text.Json.Nodes;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Tests.Llama;

/// <summary>
/// Tokenizers of SentencePiece's kind, as tokenizer.json and as tokenizer.model, against the plain rule on a small vocabulary.
/// </summary>
[TestFixture]
public sealed class SentencePieceTests
{
    private const string Learned = """
        the cache of keys and values is read by the attention of each token and the keys that are kept are the largest of each token
        der Schlüssel für die größten Werte; le café où l'élève a mangé; 漢字 and 漢 and 字; 😀 or 😀😀 and a 𝒳 with  two   spaces
        """;

    private const string Prepend = """
        { "type": "Sequence", "normalizers": [
          { "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] }
        """;

    private static readonly TinySentencePiece s_pieces = new(Learned, merges: 90);

    private static readonly string[] s_texts =
    [
        "the keys", " the keys", "  the  keys ", "", " ", "tokens\nand\tlines", "größe", "日本 漢字漢", "😀😁𝒳", "x<0x41>y", "▁the",
        "thethethe attention", "\u0301\0", "The Keys 123", "</", "a </s",
    ];

    [TestCaseSource(nameof(s_texts))]
    public void BothFilesGiveTheIdsOfThePlainRule(string text)
    {
        List<int> expected = text.Length == 0 ? [] : s_pieces.Encode(Spaced(text));
        foreach (TextTokenizer tokenizer in (TextTokenizer[])[FromJson(Prepend), FromModel(s_pieces.ToModel())])
        {
            using (Assert.EnterMultipleScope())
            {
                Assert.That(tokenizer.Encode(text, addSpecialTokens: false), Is.EqualTo(expected));
                Assert.That(tokenizer.Encode(text), Is.EqualTo(expected.Prepend(TinySentencePiece.Beginning)));
                Assert.That(tokenizer.Decode(tokenizer.Encode(text)), Is.EqualTo(text.Replace('▁', ' ')));
            }
        }
    }

    [Test]
    public void AnEmptyTokenIsNeverChosen()
    {
        TextTokenizer tokenizer = FromJson(Prepend, change: root => root["model"]!["vocab"]![""] = s_pieces.Count);
        Assert.That(tokenizer.Encode("the keys", addSpecialTokens: false), Is.EqualTo(s_pieces.Encode(Spaced("the keys"))));
        Assert.That(tokenizer.Decode([s_pieces.Count]), Is.Empty);
    }

    [Test]
    public void RandomTextsGiveTheIdsOfThePlainRule()
    {
        Random random = new(11);
        string[] parts = [.. Learned.EnumerateRunes().Select(rune => rune.ToString()).Distinct(), "the", "key", "tten", " and", "ß", "ж", "🙂", "\u2028"];
        TextTokenizer json = FromJson(Prepend);
        TextTokenizer model = FromModel(s_pieces.ToModel());
        for (int i = 0; i < 300; i++)
        {
            string text = string.Concat(random.GetItems(parts, 1 + random.Next(30)));
            List<int> expected = s_pieces.Encode(Spaced(text));
            Assert.That(json.Encode(text, addSpecialTokens: false), Is.EqualTo(expected), $"tokenizer.json, text {i}: {text}");
            Assert.That(model.Encode(text, addSpecialTokens: false), Is.EqualTo(expected), $"tokenizer.model, text {i}: {text}");
            Assert.That(json.Decode(expected), Is.EqualTo(text), $"text {i}");
        }
    }

    // Special tokens divide a text; a space goes in front of each part, as the tokenizers of Llama 2 have it.
    [Test]
    public void RecognisesSpecialTokensInAText()
    {
        List<int> expected = [1, .. s_pieces.Encode("▁the▁keys"), 2, 1, .. s_pieces.Encode("▁▁and")];
        foreach (TextTokenizer tokenizer in (TextTokenizer[])[FromJson(Prepend), FromModel(s_pieces.ToModel())])
        {
            using (Assert.EnterMultipleScope())
            {
                Assert.That(tokenizer.Encode("<s>the keys</s><s> and", addSpecialTokens: false), Is.EqualTo(expected));
                Assert.That(tokenizer.Decode(expected), Is.EqualTo("the keys  and"));
                Assert.That(tokenizer.Decode(expected, skipSpecialTokens: false), Is.EqualTo("<s> the keys</s><s>  and"));
                Assert.That(tokenizer.FindAddedToken("</s>"), Is.EqualTo(2));
                Assert.That(tokenizer.FindAddedToken("the"), Is.Null);
            }
        }
    }

    // Older files of Llama 2: the tokens are found where the normalizer has put a space in front of them.
    [Test]
    public void FindsNormalizedTokensInNormalizedText()
    {
        TextTokenizer tokenizer = FromJson(Prepend, change: root =>
        {
            root["added_tokens"]![1]!["normalized"] = true;
            root["added_tokens"]![2]!["normalized"] = true;
        });
        using (Assert.EnterMultipleScope())
        {
            Assert.That(tokenizer.Encode("<s>the", addSpecialTokens: false), Is.EqualTo((int[])[1, .. s_pieces.Encode("the")]));
            Assert.That(
                tokenizer.Encode("the </s> keys", addSpecialTokens: false),
                Is.EqualTo((int[])[.. s_pieces.Encode("▁the"), 2, .. s_pieces.Encode("▁keys")]));
            Assert.That(tokenizer.Encode("the</s>", addSpecialTokens: false), Is.EqualTo(s_pieces.Encode("▁the</s>")), "no space, no token");
        }
    }

    [TestCase("always", "▁the▁keys", "▁and")]
    [TestCase("first", "▁the▁keys", "and")]
    [TestCase("never", "the▁keys", "and")]
    public void PutsSpacesWhereMetaspaceSays(string scheme, string first, string second)
    {
        TextTokenizer tokenizer = FromJson(null, $$"""{ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "{{scheme}}", "split": false }""");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(
                tokenizer.Encode("the keys</s>and", addSpecialTokens: false),
                Is.EqualTo((int[])[.. s_pieces.Encode(first), 2, .. s_pieces.Encode(second)]));
            Assert.That(tokenizer.Encode(" the", addSpecialTokens: false), Is.EqualTo(s_pieces.Encode("▁the")), "no second space");
        }
    }

    [Test]
    public void MergesWithinWordsIfMetaspaceSplits()
    {
        TextTokenizer tokenizer = FromJson(null, """{ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }""");
        string[] words = ["▁the", "▁", "▁keys", "▁漢字"];
        Assert.That(tokenizer.Encode("the  keys 漢字", addSpecialTokens: false), Is.EqualTo(words.SelectMany(s_pieces.Encode)));
    }

    [TestCase(null, new[] { 1 }, new int[0], "▁the", "▁and")]
    [TestCase("""{ "add_bos_token": false, "add_eos_token": true }""", new int[0], new[] { 2 }, "▁the", "▁and")]
    [TestCase("""{ "legacy": false }""", new[] { 1 }, new int[0], "▁the", "and")]
    public void TokenizerModelFollowsTheConfigBesideIt(string? config, int[] prefix, int[] suffix, string first, string second)
    {
        TextTokenizer tokenizer = FromModel(s_pieces.ToModel(), config);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(tokenizer.Prefix, Is.EqualTo(prefix));
            Assert.That(
                tokenizer.Encode("the</s>and"), Is.EqualTo((int[])[.. prefix, .. s_pieces.Encode(first), 2, .. s_pieces.Encode(second), .. suffix]));
        }
    }

    // Chat models made from one without marks of a chat: the pieces are the first one's, the marks stand beside them.
    [TestCase("tokenizer_config.json", true)]
    [TestCase("added_tokens.json", false)]
    public void TokensBesideTokenizerModelAreFoundInAText(string file, bool special)
    {
        (int begin, int end) = (s_pieces.Count, s_pieces.Count + 1);
        JsonObject marks = special ? Described() : new JsonObject { ["<|im_start|>"] = begin, ["<|im_end|>"] = end };
        TextTokenizer tokenizer = FromModel(s_pieces.ToModel(), marks.ToJsonString(), file);
        List<int> expected = [1, begin, .. s_pieces.Encode("▁the▁keys"), end];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(tokenizer.Encode("<|im_start|>the keys<|im_end|>"), Is.EqualTo(expected));
            Assert.That(tokenizer.Decode(expected), Is.EqualTo(special ? "the keys" : "<|im_start|> the keys<|im_end|>"));
            Assert.That(tokenizer.FindAddedToken("<|im_end|>"), Is.EqualTo(end));
            Assert.That(tokenizer.VocabSize, Is.EqualTo(end + 1));
        }

        JsonObject Described()
        {
            JsonObject tokens = [];
            foreach ((int id, string content) in ((int, string)[])[(1, "<s>"), (begin, "<|im_start|>"), (end, "<|im_end|>")])
            {
                tokens[$"{id}"] = new JsonObject { ["content"] = content, ["special"] = true, ["normalized"] = true };
            }

            return new JsonObject { ["added_tokens_decoder"] = tokens };
        }
    }

    [TestCase("added_tokens.json", """{ "<x>": 300 }""", "300")]
    [TestCase("added_tokens.json", """{ "<x>": 9999, "<y>": 9999 }""", "9999")]
    [TestCase("added_tokens.json", """{ "a": 9999 }""", "'a'")]
    [TestCase("added_tokens.json", """{ "<x>": "1" }""", "<x>")]
    [TestCase("tokenizer_config.json", """{ "added_tokens_decoder": { "x": { "content": "<x>" } } }""", "'x'")]
    [TestCase("tokenizer_config.json", """{ "added_tokens_decoder": { "9999": { } } }""", "content")]
    public void RefusesTokensBesideTokenizerModelThatDoNotFit(string file, string content, string expected) => Assert.That(
        () => FromModel(s_pieces.ToModel(), content, file), Throws.TypeOf<CheckpointException>().With.Message.Contains(expected));

    [Test]
    public void RefusesTokensBesideTokenizerModelThatTakeSpaces() => Assert.That(
        () => FromModel(s_pieces.ToModel(), """{ "added_tokens_decoder": { "9999": { "content": "<x>", "rstrip": true } } }"""),
        Throws.TypeOf<UnsupportedModelException>().With.Message.Contains("rstrip"));

    [Test]
    public void StreamedTextKeepsItsFirstSpaceOnlyWhereItContinuesAnother()
    {
        TextTokenizer tokenizer = FromJson(Prepend);
        int[] ids = [.. s_pieces.Encode("▁the"), .. s_pieces.Encode("▁漢ж")];
        string Stream(bool continues)
        {
            IncrementalDetokenizer detokenizer = new(tokenizer, continuesText: continues);
            return string.Concat(ids.Select(detokenizer.Append)) + detokenizer.Finish();
        }

        using (Assert.EnterMultipleScope())
        {
            Assert.That(Stream(continues: true), Is.EqualTo(" the 漢ж"));
            Assert.That(Stream(continues: false), Is.EqualTo("the 漢ж"));
        }
    }

    private static IEnumerable<TestCaseData> UnsupportedFiles()
    {
        yield return Case("normalizer", root => root["normalizer"] = JsonNode.Parse("""{ "type": "NFKC" }"""), "NFKC");
        yield return Case("no replacement of spaces", root => root["normalizer"] = null, "replace spaces");
        yield return Case("two spaces", root => root["pre_tokenizer"] = JsonNode.Parse("""{ "type": "Metaspace", "replacement": "▁" }"""), "both add");
        yield return Case("pre-tokenizer", root => root["pre_tokenizer"] = JsonNode.Parse("""{ "type": "Whitespace" }"""), "Whitespace");
        yield return Case("replacement", root => root["pre_tokenizer"] = JsonNode.Parse("""{ "type": "Metaspace", "replacement": "_" }"""), "Metaspace");
        yield return Case("decoder", root => root["decoder"]!["decoders"]!.AsArray().RemoveAt(1), "decoder");
        yield return Case("strip", root => root["decoder"]!["decoders"]![3]!["start"] = 2, "decoder");
        yield return Case("ignored merges", root => root["model"]!["ignore_merges"] = true, "ignore_merges");
        yield return Case(
            "merge of bytes",
            root =>
            {
                root["model"]!["vocab"]!["<0x41><0x42>"] = 9999;
                root["model"]!["merges"]!.AsArray().Add("<0x41> <0x42>");
            },
            "<0x41>");
    }

    [TestCaseSource(nameof(UnsupportedFiles))]
    public void RefusesUnsupportedFiles(Action<JsonNode> change, string expected) => Assert.That(
        () => FromJson(Prepend, change: change), Throws.TypeOf<UnsupportedModelException>().With.Message.Contains(expected));

    [Test]
    public void RefusesUnsupportedModels()
    {
        using (Assert.EnterMultipleScope())
        {
            Refused<UnsupportedModelException>(s_pieces.ToModel(modelType: 1), "BPE");
            Refused<UnsupportedModelException>(s_pieces.ToModel(typeOfLast: 4), "UserDefined");
            Refused<UnsupportedModelException>(s_pieces.ToModel(normalizer: "nmt_nfkc"), "nmt_nfkc");
            Refused<UnsupportedModelException>(s_pieces.ToModel(removeExtraSpaces: true), "remove_extra_whitespaces");
            Refused<UnsupportedModelException>(s_pieces.ToModel(byteFallback: false), "byte fallback");
            Refused<CheckpointException>(s_pieces.ToModel()[..^3], "SentencePiece model");
            Refused<CheckpointException>([], "no pieces");
        }

        static void Refused<T>(byte[] model, string expected)
            where T : Exception =>
            Assert.That(() => FromModel(model), Throws.TypeOf<T>().With.Message.Contains(expected));
    }

    private static string Spaced(string text) => "▁" + text.Replace(' ', '▁');

    private static TestCaseData Case(string name, Action<JsonNode> change, string expected) =>
        new TestCaseData(change, expected).SetArgDisplayNames(name);

    private static TextTokenizer FromJson(string? normalizer, string? preTokenizer = null, Action<JsonNode>? change = null)
    {
        JsonNode root = s_pieces.ToJson(
            normalizer is null ? null : JsonNode.Parse(normalizer), preTokenizer is null ? null : JsonNode.Parse(preTokenizer));
        change?.Invoke(root);
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("tokenizer.json"), root.ToJsonString());
        return TextTokenizer.Load(directory.Path);
    }

    private static TextTokenizer FromModel(byte[] model, string? config = null, string configFile = "tokenizer_config.json")
    {
        using TemporaryDirectory directory = new();
        File.WriteAllBytes(directory.File("tokenizer.model"), model);
        if (config is not null)
        {
            File.WriteAllText(directory.File(configFile), config);
        }

        return TextTokenizer.Load(directory.Path);
    }
}
