using System.Text.Json;
using System.Text.Json.Nodes;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Tests.Llama;

/// <summary>
/// The shipped tokenizer.json with the pre-tokenizer, normalizer and added tokens of other families, on odd texts (emoji, scripts without
/// spaces, line ends, controls, added tokens side by side), against the ids of Hugging Face tokenizers.
/// </summary>
[TestFixture]
public sealed class TokenizerVariantTests
{
    [TestCase("llama3")]
    [TestCase("qwen")]
    [TestCase("gpt2")]
    [TestCase("gpt2_prefix_space")]
    public void OddTextsHaveTheIdsOfTheReference(string variant)
    {
        using JsonDocument golden = JsonDocument.Parse(File.ReadAllText(Path.Combine(Golden.Directory, "tokenizer-variants.json")));
        JsonElement expected = golden.RootElement.GetProperty("variants").GetProperty(variant);
        TextTokenizer tokenizer = Load(expected);
        string[] texts = [.. golden.RootElement.GetProperty("texts").EnumerateArray().Select(text => text.GetString()!)];
        int[][] ids = [.. expected.GetProperty("ids").EnumerateArray().Select(Golden.Numbers)];
        Assert.That(texts, Has.Length.EqualTo(ids.Length).And.Length.GreaterThan(100));
        using (Assert.EnterMultipleScope())
        {
            for (int i = 0; i < texts.Length; i++)
            {
                Assert.That(tokenizer.Encode(texts[i]), Is.EqualTo(ids[i]), JsonSerializer.Serialize(texts[i]));
            }
        }
    }

    private static TextTokenizer Load(JsonElement variant)
    {
        JsonNode root = JsonNode.Parse(File.ReadAllText(Path.Combine(Golden.Checkpoint, "tokenizer.json")))!;
        foreach (JsonProperty change in variant.GetProperty("changes").EnumerateObject())
        {
            root[change.Name] = JsonNode.Parse(change.Value.GetRawText());
        }

        root["model"]!["ignore_merges"] = variant.GetProperty("ignore_merges").GetBoolean();
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("tokenizer.json"), root.ToJsonString());
        return TextTokenizer.Load(directory.Path);
    }
}
