using System.Text.Json.Nodes;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Tests.Llama;

/// <summary>Every kind of tokenizer.json against Hugging Face's own library, on text of many scripts and on generated text.</summary>
[TestFixture]
public sealed class TokenizerOracleTests
{
    private const string Prepend = """
        { "type": "Sequence", "normalizers": [
          { "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] }
        """;

    private const string Metaspace = """{ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }""";

    // First letters of blocks: more than 40 scripts, then symbols, emoji with joiners and skin tones, controls, noncharacters.
    private static readonly int[] s_starts =
    [
        0x41, 0xC0, 0x180, 0x391, 0x410, 0x531, 0x5D0, 0x621, 0x710, 0x780, 0x7CA, 0x800, 0x840, 0x905, 0x985, 0xA05, 0xA85, 0xB05, 0xB85,
        0xC05, 0xC85, 0xD05, 0xD85, 0xE01, 0xE81, 0xF40, 0x1000, 0x10A0, 0x1100, 0x1200, 0x13A0, 0x1401, 0x1681, 0x16A0, 0x1780, 0x1820,
        0x1900, 0x1950, 0x1A00, 0x1B05, 0x2C00, 0x2D30, 0x3041, 0x30A1, 0x3105, 0x4E00, 0xA000, 0xA4D0, 0xAC00, 0x10000, 0x10330, 0x12000,
        0x13000, 0x1D400, 0x1F600, 0x1F3FB, 0x0, 0x7F, 0x300, 0x2000, 0x2028, 0x200B, 0x660, 0x966, 0x2460, 0x1D7CE, 0xFE00, 0xFFF0,
    ];

    private static IEnumerable<TestCaseData> Families()
    {
        yield return Family("as shipped", _ => { });
        yield return Family("GPT-2", root => Split(root, ByteLevel(true)));
        yield return Family("digits, each alone", root => Split(root, Digits(true), ByteLevel(true)));
        yield return Family("digits together", root => Split(root, Digits(false), ByteLevel(true)));
        yield return Family("literal split", root => Split(root, Literal(" "), ByteLevel(false)));
        foreach (string behavior in (string[])["Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"])
        {
            foreach (bool inverts in (bool[])[false, true])
            {
                yield return Family($"{behavior}, inverts {inverts}", root => Split(root, Pattern("Regex", "[ek]|\\s", behavior, inverts), ByteLevel(false)));
            }
        }

        yield return Family("a space in front of pieces", root => Split(root, Digits(true), ByteLevel(true, addPrefixSpace: true)));
        foreach ((string? unknown, bool isFused) in ((string?, bool)[])[(null, false), ("the", false), ("the", true)])
        {
            yield return Family($"bytes missing, {unknown ?? "nothing"} for them, fused {isFused}", root =>
            {
                Remove(root, "\u00C3", "k", "\u0120");
                Unknown(root, unknown, isFused);
            });
        }

        yield return Family("an added token twice", root =>
        {
            Added(root, 8189, "<note>");
            Added(root, 8189, "<note>");
        });
        yield return Family("no split", root => Split(root, ByteLevel(false)));
        yield return Family("Qwen", root =>
        {
            root["normalizer"] = JsonNode.Parse("""{ "type": "NFC" }""");
            Added(root, 8189, "<note>");
            Added(root, 8190, "<caf\u00E9>");
        });
        yield return Family("empty normalizer", root =>
        {
            root["normalizer"] = JsonNode.Parse("""{ "type": "Sequence", "normalizers": [] }""");
            Added(root, 8189, "<note>");
        });
        yield return Family("a merge twice", root =>
        {
            JsonArray merges = root["model"]!["merges"]!.AsArray();
            merges.Add(merges[3]!.DeepClone());
        });
        TinySentencePiece pieces = new("the keys of the attention and the values 漢字 of größe é and 😀 keys", merges: 20);
        yield return new TestCaseData(pieces.ToJson(JsonNode.Parse(Prepend), null)).SetArgDisplayNames("Llama 2");
        yield return new TestCaseData(pieces.ToJson(null, JsonNode.Parse(Metaspace))).SetArgDisplayNames("Metaspace");
        foreach ((string? unknown, bool isFused) in ((string?, bool)[])[(null, false), ("<unk>", false), ("<unk>", true)])
        {
            JsonNode root = pieces.ToJson(JsonNode.Parse(Prepend), null);
            Remove(root, "<0xF0>", "<0xC3>", "<0x31>");
            Unknown(root, unknown, isFused);
            yield return new TestCaseData(root).SetArgDisplayNames($"Llama 2, bytes missing, {unknown ?? "nothing"} for them, fused {isFused}");
        }
    }

    [TestCaseSource(nameof(Families))]
    public void IdsAreThoseOfTheReference(JsonNode root)
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("tokenizer.json"), root.ToJsonString());
        TextTokenizer tokenizer = TextTokenizer.Load(directory.Path);
        Tokenizers.DotNet.Tokenizer reference = new(directory.File("tokenizer.json"));
        using (Assert.EnterMultipleScope())
        {
            foreach (string text in Texts())
            {
                Assert.That(tokenizer.Encode(text), Is.EqualTo(reference.Encode(text).Select(id => (int)id)), Escaped(text));
            }
        }
    }

    private static IEnumerable<string> Texts()
    {
        yield return "a<note>b<caf\u00E9>c<cafe\u0301> the 12 x120";
        yield return string.Concat(Enumerable.Repeat("therearekeys", 3000));
        foreach (int start in s_starts)
        {
            string run = string.Concat(Enumerable.Range(start, 12).Select(char.ConvertFromUtf32));
            yield return $"{run} {run[..2]}1 {run}\n\n  the {run}";
        }

        Random random = new(7);
        string[] parts = [" ", "  ", "\n", "\r\n", "\t", "the", "key", "'s", "12", "\u0301", "\u200D", "👩‍👩‍👧", "<|eot_id|>", "<s>", "▁", "é"];
        for (int i = 0; i < 200; i++)
        {
            yield return string.Concat(Enumerable.Range(0, 1 + random.Next(30)).Select(_ => random.Next(2) == 0
                ? parts[random.Next(parts.Length)]
                : char.ConvertFromUtf32(s_starts[random.Next(s_starts.Length)] + random.Next(12))));
        }
    }

    private static TestCaseData Family(string name, Action<JsonNode> change)
    {
        JsonNode root = JsonNode.Parse(File.ReadAllText(Path.Combine(Golden.Checkpoint, "tokenizer.json")))!;
        change(root);
        return new TestCaseData(root).SetArgDisplayNames(name);
    }

    private static void Split(JsonNode root, params JsonNode[] steps) =>
        root["pre_tokenizer"] = new JsonObject { ["type"] = "Sequence", ["pretokenizers"] = new JsonArray(steps) };

    private static JsonObject ByteLevel(bool usesRegex, bool addPrefixSpace = false) =>
        new() { ["type"] = "ByteLevel", ["add_prefix_space"] = addPrefixSpace, ["trim_offsets"] = true, ["use_regex"] = usesRegex };

    private static JsonObject Digits(bool individual) => new() { ["type"] = "Digits", ["individual_digits"] = individual };

    private static JsonObject Literal(string text) => Pattern("String", text, "Isolated", inverts: false);

    private static JsonObject Pattern(string kind, string text, string behavior, bool inverts) => new()
    {
        ["type"] = "Split", ["pattern"] = new JsonObject { [kind] = text }, ["behavior"] = behavior, ["invert"] = inverts,
    };

    // Takes tokens out of the vocabulary, and whatever is merged from them. Others take their ids: with fewer tokens the reference would
    // give other ids to the added ones.
    private static void Remove(JsonNode root, params string[] tokens)
    {
        JsonObject vocabulary = root["model"]!["vocab"]!.AsObject();
        foreach (string token in tokens)
        {
            int id = (int)vocabulary[token]!;
            vocabulary.Remove(token);
            vocabulary.Add($"zzzz{id}", id);
        }

        JsonArray merges = root["model"]!["merges"]!.AsArray();
        for (int i = merges.Count - 1; i >= 0; i--)
        {
            string[] parts = merges[i] is JsonArray pair ? [.. pair.Select(part => (string)part!)] : ((string)merges[i]!).Split(' ');
            if (parts.Any(tokens.Contains))
            {
                merges.RemoveAt(i);
            }
        }
    }

    private static void Unknown(JsonNode root, string? token, bool isFused)
    {
        root["model"]!["unk_token"] = token;
        root["model"]!["fuse_unk"] = isFused;
    }

    private static void Added(JsonNode root, int id, string content) => root["added_tokens"]!.AsArray().Add(new JsonObject
    {
        ["id"] = id, ["content"] = content, ["single_word"] = false, ["lstrip"] = false, ["rstrip"] = false, ["normalized"] = true,
        ["special"] = false,
    });

    private static string Escaped(string text) =>
        string.Concat(text.Take(80).Select(c => c is >= ' ' and <= '~' ? c.ToString() : $"\\u{(int)c:X4}"));
}
