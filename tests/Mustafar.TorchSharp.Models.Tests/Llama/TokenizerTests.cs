using System.Text.Json;
using System.Text.Json.Nodes;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class TokenizerTests
{
    private static readonly string s_file = Path.Combine(Golden.Checkpoint, "tokenizer.json");
    private static readonly TextTokenizer s_tokenizer = TextTokenizer.Load(Golden.Checkpoint);

    private static IEnumerable<TestCaseData> GoldenTexts() => Golden.Json.GetProperty("tokenizer").EnumerateArray()
        .Select((item, i) => new TestCaseData(item).SetArgDisplayNames($"text {i}"));

    [TestCaseSource(nameof(GoldenTexts))]
    public void EncodesAndDecodesGoldenTexts(JsonElement golden)
    {
        string text = golden.GetProperty("text").GetString()!;
        int[] ids = Golden.Numbers(golden.GetProperty("ids"));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(s_tokenizer.Encode(text), Is.EqualTo(ids));
            Assert.That(s_tokenizer.Encode(text, addSpecialTokens: false), Is.EqualTo(Golden.Numbers(golden.GetProperty("ids_no_bos"))));
            Assert.That(s_tokenizer.Decode(ids), Is.EqualTo(golden.GetProperty("decoded").GetString()));
            Assert.That(
                s_tokenizer.Decode(ids, skipSpecialTokens: false), Is.EqualTo(golden.GetProperty("decoded_special").GetString()));
        }
    }

    [Test]
    public void DecodingUndoesEncodingOfRandomText()
    {
        Random random = new(5);
        string[] parts = ["a", "Z", "7", " ", "\n", "\t", "é", "漢", "😀", "𝒳", "𝟙", "'s", "<|eot", "|>", "\u200D", "\u0301", "\0"];
        for (int i = 0; i < 500; i++)
        {
            string text = string.Concat(random.GetItems(parts, random.Next(40)));
            Assert.That(s_tokenizer.Decode(s_tokenizer.Encode(text)), Is.EqualTo(text));
        }
    }

    // The expression lets one character that is neither letter nor number lead a word. As UTF-16 units an emoji would be two.
    [TestCase("😀abc", new[] { "😀abc" })]
    [TestCase("a😀b", new[] { "a", "😀b" })]
    [TestCase("𝒳yz 1𝟙2", new[] { "𝒳yz", " ", "1𝟙2" })]
    [TestCase("😀😀 x", new[] { "😀😀", " x" })]
    public void SplitsByWholeCharacters(string text, string[] expected)
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllText(s_file));
        string pattern = document.RootElement.GetProperty("pre_tokenizer").GetProperty("pretokenizers")[0]
            .GetProperty("pattern").GetProperty("Regex").GetString()!;
        Assert.That(new PieceSplitter(new SplitRule(pattern)).Split(text).Select(piece => text[piece]), Is.EqualTo(expected));
    }

    [Test]
    public void KeepsTextBetweenMatches() =>
        Assert.That(new PieceSplitter(new SplitRule("[a-z]+")).Split("12ab3😀c"), Is.EqualTo(new[] { 0..2, 2..4, 4..7, 7..8 }));

    [Test]
    public void ReadsHalfASurrogatePairAsReplacementCharacter() =>
        Assert.That(s_tokenizer.Encode("a\uD83Db"), Is.EqualTo(s_tokenizer.Encode("a\uFFFDb")));

    [Test]
    public void TakesTheLongestOfAddedTokensThatBeginAtOnePlace()
    {
        TextTokenizer tokenizer = LoadWith(root => root["added_tokens"]!.AsArray().Add(
            JsonNode.Parse("""{ "id": 8189, "content": "<|eot_id|>!", "special": false }""")));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(tokenizer.Encode("<|eot_id|>!", addSpecialTokens: false), Is.EqualTo(new[] { 8189 }));
            Assert.That(tokenizer.Decode([8189, 8188]), Is.EqualTo("<|eot_id|>!"), "only special tokens are left out");
        }
    }

    [Test]
    public void TakesAPieceThatIsATokenAsAWholeOnlyIfMergesAreIgnored()
    {
        // Without its merge, " the" can be reached as a whole only.
        static void Change(JsonNode root, bool ignoreMerges)
        {
            root["model"]!["ignore_merges"] = ignoreMerges;
            root["model"]!["merges"] = new JsonArray();
        }

        int whole = s_tokenizer.Encode(" the", addSpecialTokens: false).Single();
        using (Assert.EnterMultipleScope())
        {
            Assert.That(LoadWith(root => Change(root, true)).Encode(" the", addSpecialTokens: false), Is.EqualTo(new[] { whole }));
            Assert.That(LoadWith(root => Change(root, false)).Encode(" the", addSpecialTokens: false), Has.Count.EqualTo(4));
        }
    }

    [Test]
    public void AddsWhatTheTemplateSaysBehindAText()
    {
        TextTokenizer tokenizer = LoadWith(root => root["post_processor"]!["single"]!.AsArray().Add(
            JsonNode.Parse("""{ "SpecialToken": { "id": "<|begin_of_text|>", "type_id": 0 } }""")));
        Assert.That(tokenizer.Encode("x"), Is.EqualTo(new[] { 8184, s_tokenizer.Encode("x")[1], 8184 }));
    }

    [Test]
    public void AddsNothingWithoutPostProcessor() =>
        Assert.That(LoadWith(root => root["post_processor"] = null).Encode("x"), Has.Count.EqualTo(1));

    [Test]
    public void LeavesOutTruncationAndPadding()
    {
        TextTokenizer tokenizer = LoadWith(root =>
        {
            root["truncation"] = JsonNode.Parse("""{ "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0 }""");
            root["padding"] = JsonNode.Parse("""{ "strategy": { "Fixed": 64 }, "direction": "Right", "pad_id": 0, "pad_token": "!" }""");
        });
        string text = "def main():\n    return None";
        Assert.That(tokenizer.Encode(text), Is.EqualTo(s_tokenizer.Encode(text)));
    }

    [Test]
    public void ReadsMergesAsStrings()
    {
        TextTokenizer tokenizer = LoadWith(root =>
        {
            JsonArray merges = root["model"]!["merges"]!.AsArray();
            root["model"]!["merges"] = new JsonArray([.. merges.Select(merge => (JsonNode)$"{merge![0]} {merge[1]}")]);
        });
        string text = "def main():\n    return None";
        Assert.That(tokenizer.Encode(text), Is.EqualTo(s_tokenizer.Encode(text)));
    }

    [Test]
    public void ReadsAByteLevelPreTokenizerWithItsOwnExpression()
    {
        TextTokenizer tokenizer = LoadWith(root => root["pre_tokenizer"] =
            JsonNode.Parse("""{ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }"""));
        Assert.That(tokenizer.Encode("the", addSpecialTokens: false), Is.EqualTo(s_tokenizer.Encode(" the", addSpecialTokens: false)));
    }

    // What Qwen's files have: NFC, single digits, and no token in front of a text.
    [Test]
    public void NormalisesAsQwensFilesAsk()
    {
        TextTokenizer tokenizer = LoadWith(root =>
        {
            root["normalizer"] = JsonNode.Parse("""{ "type": "NFC" }""");
            root["post_processor"] = JsonNode.Parse("""{ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false }""");
            root["pre_tokenizer"]!["pretokenizers"]![0]!["pattern"]!["Regex"] =
                @"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        });
        using (Assert.EnterMultipleScope())
        {
            Assert.That(tokenizer.Encode("cafe\u0301"), Is.EqualTo(s_tokenizer.Encode("caf\u00E9", addSpecialTokens: false)));
            Assert.That(
                tokenizer.Encode("2048"),
                Is.EqualTo("2048".SelectMany(digit => s_tokenizer.Encode(digit.ToString(), addSpecialTokens: false))));
            Assert.That(
                tokenizer.Encode("e\u0301\uFFFE\u0301"),
                Is.EqualTo(s_tokenizer.Encode("\u00E9\uFFFE\u0301", addSpecialTokens: false)),
                "a noncharacter");
        }
    }

    private static IEnumerable<TestCaseData> UnsupportedParts()
    {
        yield return Case("normalizer", root => root["normalizer"] = JsonNode.Parse("""{ "type": "NFKC" }"""), "NFKC");
        yield return Case("model type", root => root["model"]!["type"] = "Unigram", "Unigram");
        yield return Case("dropout", root => root["model"]!["dropout"] = 0.1, "dropout");
        yield return Case("subword prefix", root => root["model"]!["continuing_subword_prefix"] = "##", "##");
        yield return Case("pre-tokenizer", root => root["pre_tokenizer"] = JsonNode.Parse("""{ "type": "Metaspace" }"""), "Metaspace");
        yield return Case("split behavior", root => root["pre_tokenizer"]!["pretokenizers"]![0]!["behavior"] = "Sorted", "MergedWithNext");
        yield return Case("expression", root => root["pre_tokenizer"]!["pretokenizers"]![0]!["pattern"]!["Regex"] = "(", "expression");
        yield return Case("decoder", root => root["decoder"]!["type"] = "WordPiece", "WordPiece");
        yield return Case("post-processor", root => root["post_processor"]!["type"] = "RobertaProcessing", "RobertaProcessing");
        yield return Case("lstrip", root => root["added_tokens"]![0]!["lstrip"] = true, "lstrip");
    }

    [TestCaseSource(nameof(UnsupportedParts))]
    public void RefusesUnsupportedParts(Action<JsonNode> change, string expected) =>
        Assert.That(() => LoadWith(change), Throws.TypeOf<UnsupportedModelException>().With.Message.Contains(expected));

    private static IEnumerable<TestCaseData> DamagedParts()
    {
        foreach (string part in (string[])["model", "pre_tokenizer", "decoder"])
        {
            yield return Case($"no {part}", root => root.AsObject().Remove(part), $"'{part}'");
        }

        yield return Case("no vocab", root => root["model"]!.AsObject().Remove("vocab"), "'vocab'");
        yield return Case("no merges", root => root["model"]!.AsObject().Remove("merges"), "'merges'");
        yield return Case(
            "no bytes",
            root =>
            {
                root["model"]!["vocab"] = JsonNode.Parse("""{ "the": 0 }""");
                root["model"]!["merges"] = new JsonArray();
            },
            "tokens for bytes");
        yield return Case("unknown token", root => root["model"]!["unk_token"] = "<gone>", "'<gone>' in the vocabulary");
        yield return Case(
            "two ids of an added token",
            root =>
            {
                JsonNode again = root["added_tokens"]![0]!.DeepClone();
                again["id"] = 9000;
                root["added_tokens"]!.AsArray().Add(again);
            },
            "and 9000");
        yield return Case("merge of nothing", root => root["model"]!["merges"]!.AsArray().Add("qqqq zzzz"), "qqqq");
        yield return Case("merge of three", root => root["model"]!["merges"]!.AsArray().Add("a b c"), "a b c");
        yield return Case("id twice", root => root["added_tokens"]![0]!["id"] = 5, "one token per id");
        yield return Case("id is text", root => root["model"]!["vocab"]!["!"] = "zero", "'!'");
        foreach (string id in (string[])["\"abc\"", "2147483648", "1.5", "-1"])
        {
            yield return Case(
                $"template id {id}",
                root => root["post_processor"]!["special_tokens"]!["<|begin_of_text|>"]!["ids"] = new JsonArray(JsonNode.Parse(id)),
                id.Trim('"'));
        }

        yield return Case("template", root => root["post_processor"]!["special_tokens"] = new JsonObject(), "<|begin_of_text|>");
    }

    [TestCaseSource(nameof(DamagedParts))]
    public void RefusesDamagedParts(Action<JsonNode> change, string expected) =>
        Assert.That(() => LoadWith(change), Throws.TypeOf<CheckpointException>().With.Message.Contains(expected));

    [Test]
    public void RefusesAMissingFileAndOneThatIsNotJson()
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("tokenizer.json"), "{ \"model\": ");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => TextTokenizer.Load(directory.File("none")), Throws.TypeOf<FileNotFoundException>());
            Assert.That(() => TextTokenizer.Load(directory.Path), Throws.TypeOf<CheckpointException>());
        }
    }

    [TestCase("tokenizer.json")]
    [TestCase("tokenizer.model")]
    public void NamesAGitLfsPointer(string file)
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(
            directory.File(file), $"version https://git-lfs.github.com/spec/v1\noid sha256:{new string('a', 64)}\nsize 9085657\n");
        Assert.That(
            () => TextTokenizer.Load(directory.Path),
            Throws.TypeOf<CheckpointException>().With.Message.Contains(file).And.Message.Contains("git lfs pull"));
    }

    [TestCase("content\": \"<|eot_id|>", "content\": \"\\ud800", "'content'")]
    [TestCase("vocab\":{", "vocab\":{\"\\uDC00\": 9000,", "a key after 'vocab'")]
    public void NamesAKeyWithHalfASurrogatePair(string old, string replaced, string expected)
    {
        using TemporaryDirectory directory = new();
        string text = JsonNode.Parse(File.ReadAllText(s_file))!.ToJsonString(new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping });
        text = text.Replace("\"content\":\"", "\"content\": \"");
        Assert.That(text, Does.Contain(old));
        File.WriteAllText(directory.File("tokenizer.json"), text.Replace(old, replaced));
        Assert.That(
            () => TextTokenizer.Load(directory.Path),
            Throws.TypeOf<CheckpointException>().With.Message.Contains("tokenizer.json").And.Message.Contains(expected));
    }

    // What the file says, then what the caller says.
    [TestCase(null, null, 0, -1)]
    [TestCase(true, true, 0, 1)]
    [TestCase(false, null, -1, -1)]
    [TestCase(null, true, 0, 1)]
    [TestCase(false, false, -1, -1)]
    public void TheCallerDecidesWhatStandsAroundAText(bool? begins, bool? ends, int first, int last)
    {
        using TemporaryDirectory directory = new();
        JsonNode root = JsonNode.Parse(File.ReadAllText(s_file))!;
        string[] tokens = [.. root["added_tokens"]!.AsArray().Take(2).Select(token => (string)token!["content"]!)];
        root["post_processor"] = JsonNode.Parse($$"""
            { "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "x" } }, { "Sequence": { "id": "A" } }],
              "special_tokens": { "x": { "ids": [{{s_tokenizer.FindAddedToken(tokens[0])}}] } } }
            """);
        File.WriteAllText(directory.File("tokenizer.json"), root.ToJsonString());
        File.WriteAllText(directory.File("tokenizer_config.json"), new JsonObject
        {
            ["bos_token"] = tokens[0],
            ["eos_token"] = new JsonObject { ["content"] = tokens[1] },
            ["add_bos_token"] = false,
        }.ToJsonString());
        TextTokenizer tokenizer = TextTokenizer.Load(directory.Path, new TextFrame(begins, ends));
        Assert.That(tokenizer.Prefix, Is.EqualTo(Ids(first)));
        Assert.That(tokenizer.Suffix, Is.EqualTo(Ids(last)));

        int[] Ids(int token) => token < 0 ? [] : [s_tokenizer.FindAddedToken(tokens[token])!.Value];
    }

    [Test]
    public void ATokenAroundATextMustExist()
    {
        using TemporaryDirectory directory = new();
        File.Copy(s_file, directory.File("tokenizer.json"));
        Assert.That(
            () => TextTokenizer.Load(directory.Path, new TextFrame(AddsEnd: true)),
            Throws.TypeOf<CheckpointException>().With.Message.Contains("'eos_token'"));
    }

    [Test]
    public void EncodingCanBeCancelled()
    {
        using CancellationTokenSource source = new();
        source.Cancel();
        Assert.That(
            () => s_tokenizer.Encode("the keys", cancellationToken: source.Token), Throws.InstanceOf<OperationCanceledException>());
    }

    [Test]
    public void AnExpressionThatExplodesIsMatchedWithoutBacktracking() =>
        Assert.That(new PieceSplitter(new SplitRule("(a+)+$")).Split(new string('a', 60) + "!"), Has.Count.EqualTo(1));

    [Test]
    public void AnExpressionThatLooksAheadAndExplodesHasATimeLimit() => Assert.That(
        () => new PieceSplitter(new SplitRule("(?=(a+)+$)b|a")).Split(new string('a', 60) + "!"),
        Throws.TypeOf<TimeoutException>().With.Message.Contains("(?=(a+)+$)b|a"));

    [Test]
    public void AnAddedTokenThatTheModelLacksIsRefusedInATextOnly()
    {
        TextTokenizer tokenizer = LoadWith(root => root["added_tokens"]!.AsArray().Add(
            JsonNode.Parse("""{ "id": 8189, "content": "<pad>", "special": true }""")));
        tokenizer.LimitIds(8189, "checkpoint");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(tokenizer.Encode("the pad"), Is.EqualTo(s_tokenizer.Encode("the pad")));
            Assert.That(() => tokenizer.Encode("a<pad>"), Throws.ArgumentException.With.Message.Contains("'<pad>'"));
            Assert.That(() => s_tokenizer.LimitIds(8000, "checkpoint"), Throws.TypeOf<CheckpointException>().With.Message.Contains("8000"));
        }
    }

    [Test]
    public void RefusesIdsOutOfTheVocabulary() =>
        Assert.That(() => s_tokenizer.Decode([8189]), Throws.TypeOf<ArgumentOutOfRangeException>());

    private static TestCaseData Case(string name, Action<JsonNode> change, string expected) =>
        new TestCaseData(change, expected).SetArgDisplayNames(name);

    private static TextTokenizer LoadWith(Action<JsonNode> change)
    {
        JsonNode root = JsonNode.Parse(File.ReadAllText(s_file))!;
        change(root);
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("tokenizer.json"), root.ToJsonString());
        return TextTokenizer.Load(directory.Path);
    }
}
