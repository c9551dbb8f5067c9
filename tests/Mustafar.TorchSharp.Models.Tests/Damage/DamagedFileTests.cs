using System.Text.Json.Nodes;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using Mustafar.Models.Tokenizer;
using Mustafar.Tests.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Damage;

/// <summary>Files of a checkpoint, and files that hold caches.</summary>
[TestFixture]
public sealed class DamagedFileTests : DamageFixture
{
    private const string SomeText = "Hello  wörld, 12345 times!\n\t<|im_start|> ▁ \ud83d\ude00 don't <s> aaaaaaaaaaaaaaaa";

    [Test]
    public void Config() => ChangeJson("config.json", () => LlamaConfig.Load(PathOf("config.json")), """
        {
          "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
          "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192 },
          "sliding_window": 512, "use_sliding_window": true, "max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention"],
          "eos_token_id": [256, 258], "bos_token_id": 1, "pad_token_id": null, "tie_word_embeddings": false, "attention_bias": false,
          "mlp_bias": false, "quantization_config": null, "rope_parameters": null, "attention_dropout": 0.0
        }
        """);

    [Test]
    public void GenerationConfiguration() => ChangeJson("generation_config.json", () => GenerationConfig.Load(Folder), """
        { "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "eos_token_id": [256, 258], "repetition_penalty": 1.1 }
        """);

    [Test]
    public void ByteLevelTokenizer() => ChangeJson("tokenizer.json", Tokenize, """
        {
          "normalizer": { "type": "Sequence", "normalizers": [{ "type": "NFC" }] },
          "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "Split", "pattern": { "Regex": "\\p{L}+|\\p{N}{1,3}|\\s+" }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }] },
          "post_processor": { "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } }], "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [256], "tokens": ["<|endoftext|>"] } } },
          "truncation": null, "padding": null, "version": "1.0"
        }
        """);

    [Test]
    public void SentencePieceTokenizer()
    {
        File.WriteAllText(PathOf("tokenizer.json"), Pieces().ToJson(
            JsonNode.Parse("""
                { "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] }
                """),
            preTokenizer: null).ToJsonString());
        ChangeJson("tokenizer.json", Tokenize, "{}");
    }

    [Test]
    public void SentencePieceModel()
    {
        File.Delete(PathOf("tokenizer.json"));
        File.WriteAllBytes(PathOf("tokenizer.model"), Pieces().ToModel());
        Change("tokenizer.model", Tokenize, DamagedBytes.Change);
    }

    [Test]
    public void TokenizerConfigBesideAModel()
    {
        File.Delete(PathOf("tokenizer.json"));
        File.WriteAllBytes(PathOf("tokenizer.model"), Pieces().ToModel());
        ChangeJson("tokenizer_config.json", Tokenize, """
            {
              "add_bos_token": true, "add_eos_token": false, "legacy": false, "bos_token": "<s>", "eos_token": { "content": "</s>", "lstrip": false },
              "unk_token": "<unk>", "add_prefix_space": null,
              "added_tokens_decoder": { "0": { "content": "<unk>", "special": true }, "1": { "content": "<s>", "special": true },
                "2": { "content": "</s>", "special": true, "normalized": false, "lstrip": false, "rstrip": false, "single_word": false } }
            }
            """);
    }

    [Test]
    public void Weights()
    {
        Change("model.safetensors", Open, WithOtherHeader(PathOf("model.safetensors")));
        void Open()
        {
            using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(Folder);
        }
    }

    [Test]
    public void IndexOfWeights()
    {
        string map;
        using (SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(Folder))
        {
            map = string.Join(", ", checkpoint.Names.Select(name => $"\"{name}\": \"model-00001-of-00001.safetensors\""));
        }

        File.Move(PathOf("model.safetensors"), PathOf("model-00001-of-00001.safetensors"));
        File.WriteAllText(PathOf("model.safetensors.index.json"), $$"""{ "metadata": { "total_size": 1 }, "weight_map": { {{map}} } }""");
        ChangeJson("model.safetensors.index.json", () => SafetensorsCheckpoint.Open(Folder).Dispose(), "{}");
    }

    /// <summary>Weights, configuration and tokenizer that no longer belong together: the shapes of what is loaded.</summary>
    [TestCase("config.json")]
    [TestCase("model.safetensors")]
    [TestCase("tokenizer.json")]
    public void Checkpoint(string name)
    {
        string path = PathOf(name);
        Func<byte[], Random, byte[]> change = name == "model.safetensors" ? WithOtherHeader(path) : WithOtherJson(path);
        Change(name, () => LanguageModel.Load(Folder).Dispose(), change);
    }

    [Test]
    public void CacheThatStaysEmpty()
    {
        string path = PathOf("cache");
        using (MustafarCache cache = New())
        {
            using Tensor tokens = randn(2, 1, 70, 64);
            cache.Append(tokens, tokens, [70, 40]);
            cache.Save(path, "model");
        }

        Change("cache", Load, WithOtherHeader(path));

        void Load()
        {
            using MustafarCache cache = New();
            try
            {
                cache.Load(path, "model");
            }
            catch (UnusableFileException)
            {
                Assert.That(cache.Length, Is.Zero);
                throw;
            }

            // What was accepted can be used.
            using Tensor query = randn(2, 1, 1, 64);
            cache.Forward(query, query, query).Dispose();
        }

        static MustafarCache New() => new(
            2, new() { NumKvHeads = 1, HeadDim = 64 }, ScalarType.Float32, options: new MustafarOptions { LocalWindow = 0, GroupSize = 32, SinkTokens = 1, SlidingWindow = 60 });
    }

    private static TinySentencePiece Pieces() => new("the quick brown fox jumps over the lazy dog the fox", merges: 12);

    private void Tokenize()
    {
        TextTokenizer tokenizer = TextTokenizer.Load(Folder);
        try
        {
            tokenizer.Decode(tokenizer.Encode(SomeText));
        }
        catch (TimeoutException)
        {
            // A regular expression that explodes.
        }
    }
}
