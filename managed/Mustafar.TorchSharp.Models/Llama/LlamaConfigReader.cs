using System.Text.Json;
using Mustafar.Models.Checkpoint;
using static TorchSharp.torch;

namespace Mustafar.Models.Llama;

/// <summary>Reads config.json. Anything that would change the model's numbers and isn't implemented is refused, never ignored.</summary>
internal static class LlamaConfigReader
{
    private const int MistralWindow = 4096;
    private const int QwenWindow = 4096;
    private const int QwenFirstWindowedLayer = 28;
    private const int Qwen3HeadDim = 128;

    // What transformers defines for each architecture: the parts that it adds, and the defaults of its config.
    private static readonly Family[] s_families =
    [
        new("LlamaForCausalLM", "llama", WithLlamaBiases, KvHeadsDefaultToHeads: true),
        new("MistralForCausalLM", "mistral", WithMistralWindow),
        new("Qwen2ForCausalLM", "qwen2", (config, root, path) => WithQwenWindow(config with { QkvBias = true }, root, path)),
        new("Qwen3ForCausalLM", "qwen3", WithQwen3Parts, HeadDim: Qwen3HeadDim),
    ];

    // Keys of related models that change the computation, each with a test for values that don't.
    private static readonly Dictionary<string, Func<JsonElement, bool>> s_neutralValues = new()
    {
        ["partial_rotary_factor"] = value => value.IsNumber(1),
        ["attn_logit_softcapping"] = _ => false,
        ["final_logit_softcapping"] = _ => false,
        ["query_pre_attn_scalar"] = _ => false,
        ["attention_multiplier"] = _ => false,
        ["embedding_multiplier"] = value => value.IsNumber(1),
        ["residual_multiplier"] = value => value.IsNumber(1),
        ["logits_scaling"] = value => value.IsNumber(1),
        ["logit_scale"] = value => value.IsNumber(1),
        ["use_qk_norm"] = value => value.ValueKind == JsonValueKind.False,
        ["clip_qkv"] = _ => false,
        ["num_local_experts"] = value => value.IsNumber(0) || value.IsNumber(1),
        ["num_experts"] = value => value.IsNumber(0) || value.IsNumber(1),
    };

    /// <summary>Reads the root object of config.json.</summary>
    public static LlamaConfig Read(JsonElement root, string path)
    {
        Family family = FamilyOf(root, path);
        foreach ((string key, Func<JsonElement, bool> isNeutral) in s_neutralValues)
        {
            if (root.Find(key) is JsonElement value && !isNeutral(value))
            {
                throw new UnsupportedModelException($"'{key}' = {value.Quote()} is not supported.", path);
            }
        }

        if (root.Find("quantization_config") is JsonElement quantization)
        {
            throw new UnsupportedModelException(
                $"'quantization_config' with quant_method {quantization.Find("quant_method")?.Quote() ?? "not given"} is not supported; "
                + "expected a checkpoint whose weights are float32, float16 or bfloat16.",
                path);
        }

        string activation = root.FindString("hidden_act", path) ?? "silu";
        if (activation is not ("silu" or "swish"))
        {
            throw new UnsupportedModelException($"'hidden_act' = '{activation}' is not supported; expected 'silu'.", path);
        }

        int hiddenSize = Positive(root, "hidden_size", path);
        int numHeads = Positive(root, "num_attention_heads", path);
        int numKvHeads = family.KvHeadsDefaultToHeads && root.Find("num_key_value_heads") is null
            ? numHeads
            : Positive(root, "num_key_value_heads", path);
        if (numHeads % numKvHeads != 0)
        {
            throw new CheckpointException(
                $"expected 'num_attention_heads' to be a multiple of 'num_key_value_heads', but they are {numHeads} and {numKvHeads}.", path);
        }

        int headDim = HeadDim(root, hiddenSize, numHeads, family.HeadDim, path);
        LlamaConfig config = new()
        {
            VocabSize = Positive(root, "vocab_size", path),
            HiddenSize = hiddenSize,
            IntermediateSize = Positive(root, "intermediate_size", path),
            NumLayers = NumLayers(root, path),
            NumHeads = numHeads,
            NumKvHeads = numKvHeads,
            HeadDim = headDim,
            RmsNormEps = Epsilon(root, path),
            Rotary = RotaryConfig.Read(root, headDim, path),
            MaxPositions = root.Find("max_position_embeddings") is null ? 2048 : Positive(root, "max_position_embeddings", path),
            TieWordEmbeddings = root.FindBoolean("tie_word_embeddings", path) ?? false,
            DType = DType(root, path),
            EosTokenIds = TokenIds(root, "eos_token_id", path),
        };
        return family.Complete(config, root, path);
    }

    /// <summary>The value of a key that holds one token id or a list of them; none if it is absent.</summary>
    public static IReadOnlyList<int> TokenIds(JsonElement root, string key, string path)
    {
        if (root.Find(key) is not JsonElement value)
        {
            return [];
        }

        IEnumerable<JsonElement> items = value.ValueKind == JsonValueKind.Array ? value.EnumerateArray() : [value];
        return items.Select(item => item.ValueKind == JsonValueKind.Number && item.TryGetInt32(out int id) && id >= 0
            ? id
            : throw new CheckpointException($"expected token ids as '{key}', but got {value.Quote()}.", path)).ToList();
    }

    private static Family FamilyOf(JsonElement root, string path)
    {
        Family? family;
        string what;
        if (root.Find("architectures") is not JsonElement list)
        {
            // Some tools leave the list out; then only the model type says what it is.
            string type = root.FindString("model_type", path) ?? throw new CheckpointException("expected 'architectures' or 'model_type'.", path);
            family = s_families.FirstOrDefault(item => item.ModelType == type);
            what = $"model type '{type}'";
        }
        else if (list.ValueKind != JsonValueKind.Array || list.GetArrayLength() == 0 || list[0].ValueKind != JsonValueKind.String)
        {
            throw new CheckpointException($"expected a list of names as 'architectures', but got {list.Quote()}.", path);
        }
        else
        {
            family = s_families.FirstOrDefault(item => item.Architecture == list[0].GetString());
            what = $"architecture '{list[0].GetString()}'";
        }

        return family ?? throw new UnsupportedModelException(
            $"{what} is not supported; expected one of: {string.Join(", ", s_families.Select(item => item.Architecture))}.", path);
    }

    private static LlamaConfig WithLlamaBiases(LlamaConfig config, JsonElement root, string path)
    {
        if (root.Find("sliding_window") is JsonElement window)
        {
            throw new UnsupportedModelException($"'sliding_window' = {window.Quote()} of a Llama is not supported.", path);
        }

        bool attentionBias = root.FindBoolean("attention_bias", path) ?? false;
        return WithLayerTypes(config, root, path) with
        {
            QkvBias = attentionBias,
            AttentionOutputBias = attentionBias,
            MlpBias = root.FindBoolean("mlp_bias", path) ?? false,
        };
    }

    private static LlamaConfig WithMistralWindow(LlamaConfig config, JsonElement root, string path)
    {
        RequireNoBias(root, "attention_bias", path);
        RequireNoBias(root, "mlp_bias", path);
        LlamaConfig windowed = WithLayerTypes(config with { SlidingWindow = WindowOr(MistralWindow, root, path) }, root, path);
        // transformers gives all layers the window, whatever layer_types says.
        return windowed.SlidingLayers?.Contains(false) ?? false
            ? throw new UnsupportedModelException("'layer_types' with 'full_attention' and a 'sliding_window' is not supported.", path)
            : windowed;
    }

    private static LlamaConfig WithQwen3Parts(LlamaConfig config, JsonElement root, string path)
    {
        bool attentionBias = root.FindBoolean("attention_bias", path) ?? false;
        return WithQwenWindow(config with { QueryKeyNorm = true, QkvBias = attentionBias, AttentionOutputBias = attentionBias }, root, path);
    }

    // Qwen's window is off unless use_sliding_window turns it on; layer_types says which layers have it, otherwise max_window_layers.
    private static LlamaConfig WithQwenWindow(LlamaConfig config, JsonElement root, string path)
    {
        RequireNoBias(root, "mlp_bias", path);
        if (!config.QueryKeyNorm)
        {
            RequireNoBias(root, "attention_bias", path);
        }

        if (!(root.FindBoolean("use_sliding_window", path) ?? false) || WindowOr(QwenWindow, root, path) is not int window)
        {
            return WithLayerTypes(config, root, path);
        }

        int first = root.FindInt32("max_window_layers", path) ?? QwenFirstWindowedLayer;
        return WithLayerTypes(
            config with { SlidingWindow = window, SlidingLayers = [.. Enumerable.Range(0, config.NumLayers).Select(layer => layer >= first)] },
            root,
            path);
    }

    // transformers has a default if the key is absent; null means a model without a window.
    private static int? WindowOr(int absent, JsonElement root, string path) =>
        !root.TryGetProperty("sliding_window", out JsonElement value) ? absent
        : value.ValueKind == JsonValueKind.Null ? null
        : Positive(root, "sliding_window", path);

    private static LlamaConfig WithLayerTypes(LlamaConfig config, JsonElement root, string path)
    {
        if (root.Find("layer_types") is not JsonElement list)
        {
            return config;
        }

        string?[] types = list.ValueKind == JsonValueKind.Array
            ? [.. list.EnumerateArray().Select(item => item.ValueKind == JsonValueKind.String ? item.GetString() : null)]
            : [];
        if (types.Length != config.NumLayers)
        {
            throw new CheckpointException($"expected 'layer_types' of {config.NumLayers} layers, but got {list.Quote()}.", path);
        }

        bool[] sliding = [.. types.Select(type => type == "sliding_attention")];
        bool isKnown = types.Zip(sliding).All(pair => pair.Second || pair.First == "full_attention");
        return isKnown && (config.SlidingWindow is not null || !sliding.Contains(true))
            ? config with { SlidingLayers = config.SlidingWindow is null ? null : sliding }
            : throw new UnsupportedModelException(
                $"'layer_types' = {list.Quote()} is not supported; expected 'full_attention', or 'sliding_attention' in a model with a window.",
                path);
    }

    private static void RequireNoBias(JsonElement root, string key, string path)
    {
        if (root.FindBoolean(key, path) ?? false)
        {
            throw new UnsupportedModelException($"'{key}' is not supported for this architecture.", path);
        }
    }

    private static int HeadDim(JsonElement root, int hiddenSize, int numHeads, int? inFamily, string path)
    {
        int headDim;
        if (root.Find("head_dim") is not null)
        {
            headDim = Positive(root, "head_dim", path);
        }
        else if (inFamily is int always)
        {
            headDim = always;
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

    private static double Epsilon(JsonElement root, string path)
    {
        const string key = "rms_norm_eps";
        double value = root.FindDouble(key, path) ?? 1e-6;
        return double.IsFinite(value) && value >= 0
            ? value
            : throw new CheckpointException($"expected a finite '{key}' of at least 0, but it is {root.Find(key)!.Value.Quote()}.", path);
    }

    // Per-layer settings are listed before the weights can tell how many layers there are.
    private static int NumLayers(JsonElement root, string path)
    {
        const int most = 10_000;
        int layers = Positive(root, "num_hidden_layers", path);
        return layers <= most
            ? layers
            : throw new CheckpointException($"expected 1 to {most} as 'num_hidden_layers', but it is {layers}.", path);
    }

    private static int Positive(JsonElement root, string key, string path)
    {
        int value = root.RequireInt32(key, path);
        return value > 0 ? value : throw new CheckpointException($"expected a positive '{key}', but it is {value}.", path);
    }

    /// <param name="Architecture">Its name in <c>architectures</c>.</param>
    /// <param name="ModelType">Its name as <c>model_type</c>.</param>
    /// <param name="Complete">Adds what this architecture has in addition to the others.</param>
    /// <param name="HeadDim">Default head_dim; hidden_size / num_attention_heads if null.</param>
    /// <param name="KvHeadsDefaultToHeads">Whether <c>num_key_value_heads</c> is optional.</param>
    private sealed record Family(
        string Architecture,
        string ModelType,
        Func<LlamaConfig, JsonElement, string, LlamaConfig> Complete,
        int? HeadDim = null,
        bool KvHeadsDefaultToHeads = false);
}
