using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using Mustafar.Examples.Llama.Checkpoint;
using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;
using Mustafar.Examples.Llama.Tokenizer;
using Mustafar.Tests.Llama;
using Mustafar.Tests.Storage;
using static TorchSharp.torch;

namespace Mustafar.Tests.Damage;

/// <summary>Files that were changed at random are read, or refused with <see cref="UnusableFileException"/>, and nothing else happens.</summary>
/// <remarks>
/// MUSTAFAR_DAMAGED_FILES sets how many files each test makes, and MUSTAFAR_DAMAGED_SEED the first seed; a failure names the seed of its
/// file, which alone makes the same file again.
/// </remarks>
[TestFixture]
public sealed class DamagedFileTests
{
    private const string SomeText = "Hello  wörld, 12345 times!\n\t<|im_start|> ▁ \ud83d\ude00 don't <s> aaaaaaaaaaaaaaaa";

    private static readonly TimeSpan s_longest = TimeSpan.FromSeconds(20);
    private static readonly int s_files = Setting("MUSTAFAR_DAMAGED_FILES", 400);
    private static readonly int s_firstSeed = Setting("MUSTAFAR_DAMAGED_SEED", 1);

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory().WithTinyCheckpoint();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [Test]
    public void Config() => Json("config.json", () => LlamaConfig.Load(_directory.File("config.json")), """
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
    public void GenerationConfiguration() => Json("generation_config.json", () => GenerationConfig.Load(_directory.Path), """
        { "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "eos_token_id": [256, 258], "repetition_penalty": 1.1 }
        """);

    [Test]
    public void ByteLevelTokenizer() => Json("tokenizer.json", Tokenize, """
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
        File.WriteAllText(_directory.File("tokenizer.json"), Pieces().ToJson(
            JsonNode.Parse("""
                { "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] }
                """),
            preTokenizer: null).ToJsonString());
        Json("tokenizer.json", Tokenize, "{}");
    }

    [Test]
    public void SentencePieceModel()
    {
        File.Delete(_directory.File("tokenizer.json"));
        File.WriteAllBytes(_directory.File("tokenizer.model"), Pieces().ToModel());
        Change("tokenizer.model", Tokenize, DamagedBytes.Change);
    }

    [Test]
    public void TokenizerConfigBesideAModel()
    {
        File.Delete(_directory.File("tokenizer.json"));
        File.WriteAllBytes(_directory.File("tokenizer.model"), Pieces().ToModel());
        Json("tokenizer_config.json", Tokenize, """
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
        Change("model.safetensors", Open, WithOtherHeader(_directory.File("model.safetensors")));
        void Open()
        {
            using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(_directory.Path);
        }
    }

    [Test]
    public void IndexOfWeights()
    {
        string map;
        using (SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(_directory.Path))
        {
            map = string.Join(", ", checkpoint.Names.Select(name => $"\"{name}\": \"model-00001-of-00001.safetensors\""));
        }

        File.Move(_directory.File("model.safetensors"), _directory.File("model-00001-of-00001.safetensors"));
        File.WriteAllText(_directory.File("model.safetensors.index.json"), $$"""{ "metadata": { "total_size": 1 }, "weight_map": { {{map}} } }""");
        Json("model.safetensors.index.json", () => SafetensorsCheckpoint.Open(_directory.Path).Dispose(), "{}");
    }

    /// <summary>Weights, configuration and tokenizer that no longer belong together: the shapes of what is loaded.</summary>
    [TestCase("config.json")]
    [TestCase("model.safetensors")]
    [TestCase("tokenizer.json")]
    public void Checkpoint(string name)
    {
        string path = _directory.File(name);
        Func<byte[], Random, byte[]> change = name == "model.safetensors" ? WithOtherHeader(path) : WithOtherJson(path);
        Change(name, () => LanguageModel.Load(_directory.Path).Dispose(), change);
    }

    [Test]
    public void CacheThatStaysEmpty()
    {
        string path = _directory.File("cache");
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
            2, 1, 64, ScalarType.Float32, options: new MustafarOptions { LocalWindow = 0, GroupSize = 32, SinkTokens = 1, SlidingWindow = 60 });
    }

    private static int Setting(string name, int otherwise) =>
        Environment.GetEnvironmentVariable(name) is string text ? int.Parse(text, CultureInfo.InvariantCulture) : otherwise;

    private static TinySentencePiece Pieces() => new("the quick brown fox jumps over the lazy dog the fox", merges: 12);

    // Of three files one is no JSON any more.
    private static Func<byte[], Random, byte[]> WithOtherJson(string path)
    {
        DamagedJson json = new(File.ReadAllText(path));
        return (bytes, random) => random.Next(3) == 0 ? DamagedBytes.Change(bytes, random) : Encoding.UTF8.GetBytes(json.Change(random));
    }

    // Of three files two have a header of the right length and, where there is one, the right checksum.
    private static Func<byte[], Random, byte[]> WithOtherHeader(string path)
    {
        (string header, byte[] data) = SafetensorsText.Parts(File.ReadAllBytes(path));
        DamagedJson json = new(header);
        byte[] start = Encoding.UTF8.GetBytes(header);
        return (bytes, random) => random.Next(6) switch
        {
            0 or 1 => DamagedBytes.Change(bytes, random),
            2 => SafetensorsText.Sealed(Encoding.UTF8.GetString(DamagedBytes.Change(start, random)), data),
            3 => SafetensorsText.Sealed(header, DamagedBytes.Change(data, random)),
            _ => SafetensorsText.Sealed(json.Change(random), data),
        };
    }

    private void Tokenize()
    {
        TextTokenizer tokenizer = TextTokenizer.Load(_directory.Path);
        try
        {
            tokenizer.Decode(tokenizer.Encode(SomeText));
        }
        catch (TimeoutException)
        {
            // A regular expression that explodes.
        }
    }

    // With what else such a file may hold.
    private void Json(string name, Action read, string more)
    {
        string path = _directory.File(name);
        JsonObject root = File.Exists(path) ? JsonNode.Parse(File.ReadAllText(path))!.AsObject() : [];
        foreach ((string key, JsonNode? value) in JsonNode.Parse(more)!.AsObject())
        {
            root[key] = value?.DeepClone();
        }

        File.WriteAllText(path, root.ToJsonString());
        Change(name, read, WithOtherJson(path));
    }

    private void Change(string name, Action read, Func<byte[], Random, byte[]> change)
    {
        string path = _directory.File(name);
        byte[] original = File.ReadAllBytes(path);
        read();
        int refused = 0;
        for (int seed = s_firstSeed; seed < s_firstSeed + s_files; seed++)
        {
            byte[] changed = change(original, new Random(seed));
            File.WriteAllBytes(path, changed);
            long start = Stopwatch.GetTimestamp();
            try
            {
                read();
            }
            catch (Exception exception) when (exception is UnusableFileException or FileNotFoundException)
            {
                refused++;
                Assert.That(exception.Message, Does.Contain(_directory.Path), $"seed {seed}");
            }
            catch (Exception exception)
            {
                Assert.Fail($"seed {seed}: {exception}\n{Encoding.UTF8.GetString(changed.AsSpan(0, Math.Min(changed.Length, 3000)))}");
            }

            Assert.That(Stopwatch.GetElapsedTime(start), Is.LessThan(s_longest), $"seed {seed} makes a file that takes too long");
        }

        Assert.That(refused, Is.InRange(s_files / 20, s_files - 1), "the changes reach what is read, and some files are still good");
    }
}
