using System.Text.Json;
using Mustafar.Examples.Llama.Checkpoint;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Model;

/// <summary>Reads config.json. What would change the model's numbers and isn't implemented is refused, never ignored.</summary>
internal static class LlamaConfigReader
{
    // Architectures, each with what its configs leave unsaid.
    private static readonly Dictionary<string, Func<LlamaConfig, JsonElement, string, LlamaConfig>> s_architectures = new()
    {
        ["LlamaForCausalLM"] = WithLlamaBiases,
    };

    // Keys of related models that change the computation, each with the test of a value that does not.
    private static readonly Dictionary<string, Func<JsonElement, bool>> s_neutralValues = new()
    {
        ["quantization_config"] = _ => false,
        ["partial_rotary_factor"] = value => IsNumber(value, 1),
        ["sliding_window"] = _ => false,
        ["layer_types"] = value => value.ValueKind == JsonValueKind.Array
            && value.EnumerateArray().All(item => item.ValueKind == JsonValueKind.String && item.GetString() == "full_attention"),
        ["attn_logit_softcapping"] = _ => false,
        ["final_logit_softcapping"] = _ => false,
        ["query_pre_attn_scalar"] = _ => false,
        ["attention_multiplier"] = _ => false,
        ["embedding_multiplier"] = value => IsNumber(value, 1),
        ["residual_multiplier"] = value => IsNumber(value, 1),
        ["logits_scaling"] = value => IsNumber(value, 1),
        ["logit_scale"] = value => IsNumber(value, 1),
        ["use_qk_norm"] = value => value.ValueKind == JsonValueKind.False,
        ["num_local_experts"] = value => IsNumber(value, 0) || IsNumber(value, 1),
        ["num_experts"] = value => IsNumber(value, 0) || IsNumber(value, 1),
    };

    /// <summary>Reads the root object of config.json.</summary>
    public static LlamaConfig Read(JsonElement root, string path)
    {
        string architecture = Architecture(root, path);
        foreach ((string key, Func<JsonElement, bool> isNeutral) in s_neutralValues)
        {
            if (root.Find(key) is JsonElement value && !isNeutral(value))
            {
                throw new UnsupportedModelException($"'{key}' = {value.GetRawText()} is not supported.", path);
            }
        }

        string activation = root.FindString("hidden_act", path) ?? "silu";
        if (activation is not ("silu" or "swish"))
        {
            throw new UnsupportedModelException($"'hidden_act' = '{activation}' is not supported; expected 'silu'.", path);
        }

        int hiddenSize = Positive(root, "hidden_size", path);
        int numHeads = Positive(root, "num_attention_heads", path);
        int numKvHeads = root.Find("num_key_value_heads") is null ? numHeads : Positive(root, "num_key_value_heads", path);
        if (numHeads % numKvHeads != 0)
        {
            throw new CheckpointException(
                $"expected 'num_attention_heads' to be a multiple of 'num_key_value_heads', but they are {numHeads} and {numKvHeads}.", path);
        }

        int headDim = HeadDim(root, hiddenSize, numHeads, path);
        LlamaConfig config = new()
        {
            VocabSize = Positive(root, "vocab_size", path),
            HiddenSize = hiddenSize,
            IntermediateSize = Positive(root, "intermediate_size", path),
            NumLayers = Positive(root, "num_hidden_layers", path),
            NumHeads = numHeads,
            NumKvHeads = numKvHeads,
            HeadDim = headDim,
            RmsNormEps = root.FindDouble("rms_norm_eps", path) ?? 1e-6,
            Rotary = Rotary(root, headDim, path),
            MaxPositions = root.Find("max_position_embeddings") is null ? 2048 : Positive(root, "max_position_embeddings", path),
            TieWordEmbeddings = root.FindBoolean("tie_word_embeddings", path) ?? false,
            DType = DType(root, path),
            EosTokenIds = TokenIds(root, "eos_token_id", path),
        };
        return s_architectures[architecture](config, root, path);
    }

    /// <summary>A key that holds one token id or a list of them; none if it is absent.</summary>
    public static IReadOnlyList<int> TokenIds(JsonElement root, string key, string path)
    {
        if (root.Find(key) is not JsonElement value)
        {
            return [];
        }

        IEnumerable<JsonElement> items = value.ValueKind == JsonValueKind.Array ? value.EnumerateArray() : [value];
        return items.Select(item => item.ValueKind == JsonValueKind.Number && item.TryGetInt32(out int id) && id >= 0
            ? id
            : throw new CheckpointException($"expected token ids as '{key}', but got {value.GetRawText()}.", path)).ToList();
    }

    private static string Architecture(JsonElement root, string path)
    {
        string supported = string.Join(", ", s_architectures.Keys);
        if (root.Find("architectures") is not JsonElement list)
        {
            // Some tools leave the list out; the type of the model is then the only word on it.
            string type = root.FindString("model_type", path) ?? throw new CheckpointException("expected 'architectures' or 'model_type'.", path);
            return type == "llama" ? "LlamaForCausalLM" : throw Unsupported($"model type '{type}'");
        }

        if (list.ValueKind != JsonValueKind.Array || list.GetArrayLength() == 0 || list[0].ValueKind != JsonValueKind.String)
        {
            throw new CheckpointException($"expected a list of names as 'architectures', but got {list.GetRawText()}.", path);
        }

        string name = list[0].GetString()!;
        return s_architectures.ContainsKey(name) ? name : throw Unsupported($"architecture '{name}'");

        UnsupportedModelException Unsupported(string what) => new($"{what} is not supported; expected one of: {supported}.", path);
    }

    private static LlamaConfig WithLlamaBiases(LlamaConfig config, JsonElement root, string path)
    {
        bool attentionBias = root.FindBoolean("attention_bias", path) ?? false;
        return config with
        {
            QkvBias = attentionBias,
            AttentionOutputBias = attentionBias,
            MlpBias = root.FindBoolean("mlp_bias", path) ?? false,
        };
    }

    private static int HeadDim(JsonElement root, int hiddenSize, int numHeads, string path)
    {
        int headDim;
        if (root.Find("head_dim") is not null)
        {
            headDim = Positive(root, "head_dim", path);
        }
        else if (hiddenSize % numHeads == 0)
        {
            headDim = hiddenSize / numHeads;
        }
        else
        {
            throw new CheckpointException(
                $"expected 'head_dim', or a 'hidden_size' that is a multiple of 'num_attention_heads', but they are {hiddenSize} and {numHeads}.",
                path);
        }

        return headDim % 2 == 0 ? headDim : throw new CheckpointException($"expected an even 'head_dim', but it is {headDim}.", path);
    }

    // transformers 5 has all of it in rope_parameters; 4 has rope_theta, and rope_scaling for anything but plain positions.
    private static RotaryOptions Rotary(JsonElement root, int headDim, string path)
    {
        JsonElement? scaling = root.Find("rope_parameters") ?? root.Find("rope_scaling");
        string type = "default";
        double? theta = null;
        if (scaling is JsonElement parameters)
        {
            if (parameters.ValueKind != JsonValueKind.Object)
            {
                throw new CheckpointException($"expected an object with the parameters of RoPE, but got {parameters.GetRawText()}.", path);
            }

            type = parameters.FindString("rope_type", path) ?? parameters.FindString("type", path) ?? "default";
            theta = parameters.FindDouble("rope_theta", path);
            if (parameters.Find("partial_rotary_factor") is JsonElement partial && !IsNumber(partial, 1))
            {
                throw new UnsupportedModelException($"'partial_rotary_factor' = {partial.GetRawText()} is not supported.", path);
            }
        }

        if (type != "default")
        {
            throw new UnsupportedModelException($"RoPE type '{type}' is not supported; expected 'default'.", path);
        }

        double value = theta ?? root.FindDouble("rope_theta", path) ?? 10_000;
        return value > 0
            ? new RotaryOptions { HeadDim = headDim, Theta = value }
            : throw new CheckpointException($"expected a positive 'rope_theta', but it is {value}.", path);
    }

    private static ScalarType DType(JsonElement root, string path)
    {
        string name = root.FindString("dtype", path) ?? root.FindString("torch_dtype", path) ?? "float32";
        return name switch
        {
            "float32" => ScalarType.Float32,
            "float16" => ScalarType.Float16,
            "bfloat16" => ScalarType.BFloat16,
            _ => throw new UnsupportedModelException($"dtype '{name}' is not supported; expected float32, float16 or bfloat16.", path),
        };
    }

    private static int Positive(JsonElement root, string key, string path)
    {
        int value = root.RequireInt32(key, path);
        return value > 0 ? value : throw new CheckpointException($"expected a positive '{key}', but it is {value}.", path);
    }

    private static bool IsNumber(JsonElement value, double expected) =>
        value.ValueKind == JsonValueKind.Number && value.GetDouble() == expected;
}
