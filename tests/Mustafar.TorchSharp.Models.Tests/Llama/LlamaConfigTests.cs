using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class LlamaConfigTests
{
    private const string Sizes = """
        "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-6
        """;

    private const string Llama = "\"architectures\": [\"LlamaForCausalLM\"]";
    private const string Mistral = "\"architectures\": [\"MistralForCausalLM\"], \"num_key_value_heads\": 2";
    private const string Qwen2 = "\"architectures\": [\"Qwen2ForCausalLM\"], \"num_key_value_heads\": 2";
    private const string Qwen3 = "\"architectures\": [\"Qwen3ForCausalLM\"], \"num_key_value_heads\": 2";
    private const string Llama3 = "\"rope_type\": \"llama3\", \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0";

    [Test]
    public void ReadsTheFormOfTransformers4()
    {
        LlamaConfig config = Read($$"""
            { {{Llama}}, {{Sizes}}, "num_key_value_heads": 2, "rope_theta": 500000.0, "rope_scaling": null, "torch_dtype": "float16",
              "tie_word_embeddings": true, "max_position_embeddings": 4096, "eos_token_id": [7, 9], "attention_bias": true }
            """);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(config.HeadDim, Is.EqualTo(16), "hidden_size / num_attention_heads");
            Assert.That(config.NumKvHeads, Is.EqualTo(2));
            Assert.That(config.Rotary, Is.EqualTo(new RotaryOptions { HeadDim = 16, Theta = 500_000 }));
            Assert.That(config.DType, Is.EqualTo(ScalarType.Float16));
            Assert.That(config.TieWordEmbeddings);
            Assert.That(config.MaxPositions, Is.EqualTo(4096));
            Assert.That(config.EosTokenIds, Is.EqualTo(new[] { 7, 9 }));
            Assert.That(config.QkvBias && config.AttentionOutputBias && !config.MlpBias);
        }
    }

    [Test]
    public void ReadsTheFormOfTransformers5()
    {
        LlamaConfig config = Read($$"""
            { {{Llama}}, {{Sizes}}, "head_dim": 32, "rope_parameters": { "rope_theta": 12345.0, "rope_type": "default" }, "dtype": "bfloat16",
              "eos_token_id": 3 }
            """);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(config.HeadDim, Is.EqualTo(32));
            Assert.That(config.NumKvHeads, Is.EqualTo(4), "as many as query heads");
            Assert.That(config.Rotary, Is.EqualTo(new RotaryOptions { HeadDim = 32, Theta = 12_345 }));
            Assert.That(config.DType, Is.EqualTo(ScalarType.BFloat16));
            Assert.That(config.TieWordEmbeddings, Is.False);
            Assert.That(config.EosTokenIds, Is.EqualTo(new[] { 3 }));
        }
    }

    [Test]
    public void ReadsTheScalingOfLlama3InBothForms()
    {
        RotaryOptions expected = new()
        {
            HeadDim = 16,
            Theta = 500_000,
            Scaling = new Llama3RotaryScaling { Factor = 32, LowFrequencyFactor = 1, HighFrequencyFactor = 4, OriginalMaxPositions = 8192 },
        };
        string scaling = Llama3 + ", \"factor\": 32.0, \"original_max_position_embeddings\": 8192";
        using (Assert.EnterMultipleScope())
        {
            Assert.That(
                Read($$"""{ {{Llama}}, {{Sizes}}, "rope_theta": 500000.0, "rope_scaling": { {{scaling}} } }""").Rotary, Is.EqualTo(expected));
            Assert.That(
                Read($$"""{ {{Llama}}, {{Sizes}}, "rope_parameters": { {{scaling}}, "rope_theta": 500000.0 } }""").Rotary, Is.EqualTo(expected));
        }
    }

    // What transformers takes for what a config leaves out.
    [TestCase(Mistral, 4096, 4096)]
    [TestCase(Mistral + ", \"sliding_window\": null", null, null)]
    [TestCase(Mistral + ", \"sliding_window\": 48", 48, 48)]
    [TestCase(Mistral + ", \"sliding_window\": 48, \"layer_types\": [\"sliding_attention\", \"sliding_attention\"]", 48, 48)]
    [TestCase(Qwen2 + ", \"sliding_window\": 48", null, null)]
    [TestCase(Qwen2 + ", \"sliding_window\": 48, \"use_sliding_window\": true", null, null)]
    [TestCase(Qwen2 + ", \"sliding_window\": 48, \"use_sliding_window\": true, \"max_window_layers\": 1", null, 48)]
    [TestCase(Qwen3 + ", \"use_sliding_window\": true, \"max_window_layers\": 0", 4096, 4096)]
    [TestCase(
        Qwen3 + ", \"sliding_window\": 9, \"use_sliding_window\": true, \"layer_types\": [\"sliding_attention\", \"full_attention\"]", 9, null)]
    public void ReadsWhichLayersHaveASlidingWindow(string keys, int? first, int? second)
    {
        LlamaConfig config = Read($"{{ {keys}, {Sizes} }}");
        Assert.That(new[] { config.WindowOf(0), config.WindowOf(1) }, Is.EqualTo(new[] { first, second }));
    }

    [Test]
    public void KnowsThePartsOfEachArchitecture()
    {
        LlamaConfig mistral = Read($"{{ {Mistral}, {Sizes} }}");
        LlamaConfig qwen2 = Read($$"""{ "model_type": "qwen2", "num_key_value_heads": 2, {{Sizes}} }""");
        LlamaConfig qwen3 = Read($"{{ {Qwen3}, {Sizes} }}");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(mistral.QkvBias || mistral.AttentionOutputBias || mistral.QueryKeyNorm, Is.False);
            Assert.That(qwen2.QkvBias && !qwen2.AttentionOutputBias && !qwen2.QueryKeyNorm);
            Assert.That(qwen3.QueryKeyNorm && !qwen3.QkvBias && !qwen3.AttentionOutputBias);
            Assert.That(qwen3.HeadDim, Is.EqualTo(128), "not hidden_size / num_attention_heads");
        }
    }

    [TestCase("\"architectures\": [\"GPT2LMHeadModel\"]", "GPT2LMHeadModel")]
    [TestCase("\"architectures\": [\"MixtralForCausalLM\"]", "MixtralForCausalLM")]
    [TestCase("\"model_type\": \"gpt2\"", "gpt2")]
    [TestCase(Llama + ", \"rope_scaling\": { \"type\": \"linear\", \"factor\": 2.0 }", "linear")]
    [TestCase(Llama + ", \"rope_parameters\": { \"rope_theta\": 1e4, \"rope_type\": \"yarn\" }", "yarn")]
    [TestCase(Llama + ", \"rope_parameters\": { \"rope_theta\": 1e4, \"rope_type\": \"default\", \"partial_rotary_factor\": 0.5 }", "partial_rotary_factor")]
    [TestCase(Llama + ", \"partial_rotary_factor\": 0.5", "partial_rotary_factor")]
    [TestCase(Llama + ", \"sliding_window\": 48", "sliding_window")]
    [TestCase(Llama + ", \"layer_types\": [\"full_attention\", \"sliding_attention\"]", "layer_types")]
    [TestCase(Llama + ", \"layer_types\": [\"full_attention\", \"chunked_attention\"]", "chunked_attention")]
    [TestCase(Llama + ", \"rope_scaling\": { \"type\": \"default\", \"mrope_section\": [16, 24, 24] }", "mrope_section")]
    [TestCase(Llama + ", \"rope_parameters\": { \"full_attention\": { \"rope_theta\": 1e4 } }", "full_attention")]
    [TestCase(Mistral + ", \"attention_bias\": true", "attention_bias")]
    [TestCase(Mistral + ", \"layer_types\": [\"full_attention\", \"sliding_attention\"]", "layer_types")]
    [TestCase(Qwen2 + ", \"layer_types\": [\"full_attention\", \"sliding_attention\"]", "layer_types")]
    [TestCase(Qwen2 + ", \"mlp_bias\": true", "mlp_bias")]
    [TestCase(Llama + ", \"quantization_config\": { \"quant_method\": \"gptq\" }", "quantization_config")]
    [TestCase(Llama + ", \"hidden_act\": \"gelu\"", "gelu")]
    [TestCase(Llama + ", \"embedding_multiplier\": 12", "embedding_multiplier")]
    [TestCase(Llama + ", \"dtype\": \"float8\"", "float8")]
    public void RefusesWhatWouldChangeTheNumbers(string keys, string expected) =>
        Assert.That(() => Read($"{{ {keys}, {Sizes} }}"), Throws.TypeOf<UnsupportedModelException>().With.Message.Contains(expected));

    [TestCase("{ }", "architectures")]
    [TestCase("[]", "an array")]
    [TestCase("{ \"architectures\": [] }", "architectures")]
    [TestCase("{ " + Llama + ", \"hidden_size\": 64 }", "num_attention_heads")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"num_key_value_heads\": 3 }", "multiple")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"head_dim\": 0 }", "head_dim")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"head_dim\": 15 }", "even")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"rope_theta\": -1 }", "rope_theta")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"rope_parameters\": 5 }", "RoPE")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"rope_scaling\": { " + Llama3 + ", \"original_max_position_embeddings\": 256 } }", "'factor'")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"rope_scaling\": { " + Llama3 + ", \"factor\": 8 } }", "original_max_position_embeddings")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"rope_scaling\": { \"type\": \"default\" }, \"rope_parameters\": { } }", "differ")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"layer_types\": [\"full_attention\"] }", "2 layers")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"num_hidden_layers\": 2000000000 }", "1 to 10000")]
    [TestCase("{ \"architectures\": [\"Qwen2ForCausalLM\"], " + Sizes + " }", "num_key_value_heads")]
    [TestCase("{ " + Mistral + ", " + Sizes + ", \"sliding_window\": 0 }", "sliding_window")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"tie_word_embeddings\": 1 }", "tie_word_embeddings")]
    [TestCase("{ " + Llama + ", " + Sizes + ", \"eos_token_id\": \"x\" }", "eos_token_id")]
    public void RefusesDamagedFiles(string json, string expected) =>
        Assert.That(() => Read(json), Throws.TypeOf<CheckpointException>().With.Message.Contains(expected));

    [Test]
    public void RefusesAMissingFile() =>
        Assert.That(() => LlamaConfig.Load(Path.Combine(Golden.Directory, "none.json")), Throws.TypeOf<FileNotFoundException>());

    [TestCase(null, new[] { 3 })]
    [TestCase("""{ "eos_token_id": 11 }""", new[] { 11 })]
    [TestCase("""{ "eos_token_id": [11, 12] }""", new[] { 11, 12 })]
    [TestCase("""{ "temperature": 0.6 }""", new[] { 3 })]
    public void StopTokensAreThoseOfTheGenerationConfigElseOfTheConfig(string? generationConfig, int[] expected)
    {
        using TemporaryDirectory directory = new();
        if (generationConfig is not null)
        {
            File.WriteAllText(directory.File("generation_config.json"), generationConfig);
        }

        LlamaConfig config = Read($$"""{ {{Llama}}, {{Sizes}}, "eos_token_id": 3 }""");
        Assert.That(StopTokens.Load(directory.Path, config), Is.EquivalentTo(expected));
    }

    private static LlamaConfig Read(string json)
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("config.json"), json);
        return LlamaConfig.Load(directory.File("config.json"));
    }
}
