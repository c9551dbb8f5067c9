using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Mustafar.Tests.Llama;

/// <summary>Writes a checkpoint of two layers with random weights, whose tokenizer has a token for each byte and the marks of a chat.</summary>
/// <remarks>At temperature 0 it says nothing but the letter k.</remarks>
internal static class TinyCheckpoint
{
    /// <summary>The tokens: 256 bytes and three marks.</summary>
    public const int Tokens = 259;

    /// <summary>ChatML as a program.</summary>
    public const string Template = """
        {%- for message in messages %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
        {%- endfor %}
        {%- if add_generation_prompt %}
        {{- '<|im_start|>assistant\n' }}
        {%- endif %}
        """;

    private static readonly string[] s_chatMlMarks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

    /// <summary>Writes all files.</summary>
    /// <param name="directory">Where.</param>
    /// <param name="change">Changes config.json, and with it the shapes of the weights.</param>
    /// <param name="favourite">The token that is said at temperature 0; none has a bonus if null.</param>
    /// <param name="template">The chat template.</param>
    /// <param name="marks">The special tokens, from 256 on; those of ChatML if null.</param>
    public static TemporaryDirectory WithTinyCheckpoint(
        this TemporaryDirectory directory,
        Action<JsonObject>? change = null,
        int? favourite = 'k',
        string template = Template,
        IReadOnlyList<string>? marks = null)
    {
        marks ??= s_chatMlMarks;
        JsonObject config = new()
        {
            ["architectures"] = new JsonArray("LlamaForCausalLM"),
            ["hidden_size"] = 64,
            ["intermediate_size"] = 96,
            ["num_hidden_layers"] = 2,
            ["num_attention_heads"] = 2,
            ["num_key_value_heads"] = 1,
            ["head_dim"] = 64,
            ["vocab_size"] = 256 + marks.Count,
            ["max_position_embeddings"] = 2048,
            ["rms_norm_eps"] = 1e-5,
            ["rope_theta"] = 10000.0,
            ["hidden_act"] = "silu",
            ["torch_dtype"] = "float32",
        };
        change?.Invoke(config);
        Write("config.json", config);
        Write("tokenizer.json", Tokenizer(marks));
        Write("tokenizer_config.json", new JsonObject { ["tokenizer_class"] = "PreTrainedTokenizerFast", ["chat_template"] = template });
        File.WriteAllBytes(directory.File("model.safetensors"), Weights(config, favourite));
        return directory;

        // Indented, so that values have several lines.
        void Write(string name, JsonObject root) =>
            File.WriteAllText(directory.File(name), root.ToJsonString(new JsonSerializerOptions { WriteIndented = true }));
    }

    /// <summary>A tokenizer.json in which byte b has id b.</summary>
    /// <param name="marks">Special tokens, from 256 on.</param>
    /// <param name="added">Added tokens that are not special, after them.</param>
    public static JsonObject Tokenizer(IReadOnlyList<string> marks, params IReadOnlyList<string> added)
    {
        int[] printable = [.. Enumerable.Range(0x21, 0x5E), .. Enumerable.Range(0xA1, 0x0C), .. Enumerable.Range(0xAE, 0x52)];
        JsonObject vocabulary = [];
        int others = 0;
        for (int b = 0; b < 256; b++)
        {
            vocabulary[((char)(printable.Contains(b) ? b : 256 + others++)).ToString()] = b;
        }

        JsonArray tokens = [];
        foreach (string token in marks.Concat(added))
        {
            tokens.Add(new JsonObject
            {
                ["id"] = 256 + tokens.Count, ["content"] = token, ["special"] = marks.Contains(token), ["normalized"] = false,
            });
        }

        return new JsonObject
        {
            ["added_tokens"] = tokens,
            ["pre_tokenizer"] = new JsonObject { ["type"] = "ByteLevel", ["add_prefix_space"] = false, ["use_regex"] = true },
            ["decoder"] = new JsonObject { ["type"] = "ByteLevel" },
            ["model"] = new JsonObject { ["type"] = "BPE", ["vocab"] = vocabulary, ["merges"] = new JsonArray() },
        };
    }

    private static byte[] Weights(JsonObject config, int? favourite)
    {
        Random random = new(1);
        (int hidden, int head) = (Size("hidden_size"), Size("head_dim"));
        JsonObject header = [];
        List<float> data = [];
        Add("model.embed_tokens.weight", Size("vocab_size"), hidden);
        for (int layer = 0; layer < Size("num_hidden_layers"); layer++)
        {
            string prefix = $"model.layers.{layer}.";
            Add(prefix + "input_layernorm.weight", hidden);
            Add(prefix + "self_attn.q_proj.weight", Size("num_attention_heads") * head, hidden);
            Add(prefix + "self_attn.k_proj.weight", Size("num_key_value_heads") * head, hidden);
            Add(prefix + "self_attn.v_proj.weight", Size("num_key_value_heads") * head, hidden);
            Add(prefix + "self_attn.o_proj.weight", hidden, Size("num_attention_heads") * head);
            Add(prefix + "post_attention_layernorm.weight", hidden);
            Add(prefix + "mlp.gate_proj.weight", Size("intermediate_size"), hidden);
            Add(prefix + "mlp.up_proj.weight", Size("intermediate_size"), hidden);
            Add(prefix + "mlp.down_proj.weight", hidden, Size("intermediate_size"));
        }

        Add("model.norm.weight", hidden);
        Add("lm_head.weight", Size("vocab_size"), hidden);
        return SafetensorsText.File(header.ToJsonString(), MemoryMarshal.AsBytes<float>(data.ToArray()).ToArray());

        int Size(string key) => config[key]!.GetValue<int>();

        // Channel 0 of the hidden state is the same for all tokens, and the head reads the favourite's bonus from it.
        void Add(string name, params int[] shape)
        {
            int start = data.Count;
            for (int i = 0; i < shape.Aggregate((a, b) => a * b); i++)
            {
                (int row, int column) = (i / shape[^1], i % shape[^1]);
                bool isToHidden = name.EndsWith("o_proj.weight", StringComparison.Ordinal) || name.EndsWith("down_proj.weight", StringComparison.Ordinal);
                float noise = (float)((random.NextDouble() - 0.5) * 0.17);
                data.Add(shape.Length == 1 ? 1
                    : name == "lm_head.weight" && column == 0 ? (row == favourite ? 3 : 0)
                    : name == "model.embed_tokens.weight" && column == 0 ? 1
                    : isToHidden && row == 0 ? 0
                    : noise);
            }

            header[name] = new JsonObject
            {
                ["dtype"] = "F32",
                ["shape"] = new JsonArray([.. shape.Select(size => JsonValue.Create(size))]),
                ["data_offsets"] = new JsonArray(start * sizeof(float), data.Count * sizeof(float)),
            };
        }
    }
}
