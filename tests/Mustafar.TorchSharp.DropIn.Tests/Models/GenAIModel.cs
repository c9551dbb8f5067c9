using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

// Names, fields and the order of calls are those of Microsoft.ML.GenAI.
#pragma warning disable IDE1006, CA1852

namespace Mustafar.Tests.DropIn.Models.GenAI;

/// <summary>Sizes of a model beside its heads; small by default.</summary>
internal sealed record ModelSizes(int Layers = 2, int HeadDim = 64, int Vocabulary = 40, int Intermediate = 96);

/// <summary>Computes in f32, and disposes none of its temporaries, as in the package.</summary>
internal class RMSNorm : nn.Module<Tensor, Tensor>
{
    private readonly float _eps = 1e-5f;
    private readonly Parameter weight;

    public RMSNorm(long hidden, ScalarType dtype)
        : base(nameof(RMSNorm)) => weight = nn.Parameter(ones(hidden, dtype: dtype));

    public override Tensor forward(Tensor input)
    {
        Tensor x = input.to_type(ScalarType.Float32);
        Tensor normed = (x * rsqrt(x.pow(2).mean([-1L], keepdim: true) + _eps)).type_as(input);
        return weight * normed;
    }
}

internal class LlamaMLP : nn.Module<Tensor, Tensor>
{
    private readonly QuantizedLinear gate_proj;
    private readonly QuantizedLinear up_proj;
    private readonly QuantizedLinear down_proj;

    public LlamaMLP(long hidden, long intermediate, ScalarType dtype)
        : base(nameof(LlamaMLP))
    {
        gate_proj = new QuantizedLinear(hidden, intermediate, dtype);
        up_proj = new QuantizedLinear(hidden, intermediate, dtype);
        down_proj = new QuantizedLinear(intermediate, hidden, dtype);
        RegisterComponents();
    }

    public override Tensor forward(Tensor input)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor gate = nn.functional.silu(gate_proj.forward(input));
        return down_proj.forward(gate * up_proj.forward(input)).MoveToOuterDisposeScope();
    }
}

internal class LlamaDecoderLayer : nn.Module<AttentionInput, AttentionOutput>
{
    private readonly LlamaMLP mlp;
    private readonly RMSNorm input_layernorm;
    private readonly RMSNorm post_attention_layernorm;
    private readonly Attention self_attn;

    public LlamaDecoderLayer(Attention attention, int hidden, int intermediate, ScalarType dtype)
        : base(nameof(LlamaDecoderLayer))
    {
        self_attn = attention;
        mlp = new LlamaMLP(hidden, intermediate, dtype);
        input_layernorm = new RMSNorm(hidden, dtype);
        post_attention_layernorm = new RMSNorm(hidden, dtype);
    }

    public override AttentionOutput forward(AttentionInput input)
    {
        using DisposeScope scope = NewDisposeScope();
        AttentionOutput attended = self_attn.forward(new AttentionInput(
            input_layernorm.forward(input.HiddenStates), input.PositionIds, input.PositionalEmbeddings, input.AttentionMask, input.Cache,
            input.OutputAttentions));
        Tensor hidden = input.HiddenStates + attended.HiddenStates;
        return new(
            (hidden + mlp.forward(post_attention_layernorm.forward(hidden))).MoveToOuterDisposeScope(),
            attended.Attentions?.MoveToOuterDisposeScope(),
            attended.Cache);
    }
}

internal sealed record CausalLMModelInput(
    Tensor InputIds, Tensor? AttentionMask, int PastKeyValuesLength, IKVCache? OverrideCache = null, bool OutputAttentions = false);

internal sealed class Phi3Config
{
    public int? SlidingWindow { get; set; }
}

/// <summary>Keeps the cache of the current call in a field, so that another thread's call exchanges it in the middle of this one.</summary>
internal class LlamaModel : nn.Module<CausalLMModelInput, Tensor>
{
    private readonly Embedding embed_tokens;
    private readonly ModuleList<LlamaDecoderLayer> layers = [];
    private readonly RMSNorm norm;
    private readonly RotaryEmbedding _rotaryEmb;
    private readonly Positions _positions;
    private readonly Phi3Config _config;
    private IKVCache? _cache;

    public LlamaModel(
        int heads, int kvHeads, Positions positions, ScalarType dtype, bool joint, double dropout, bool first, int? window, ModelSizes sizes)
        : base(nameof(LlamaModel))
    {
        _config = new Phi3Config { SlidingWindow = window };
        _rotaryEmb = new RotaryEmbedding(sizes.HeadDim);
        int hidden = heads * sizes.HeadDim;
        embed_tokens = nn.Embedding(sizes.Vocabulary, hidden, dtype: dtype);
        norm = new RMSNorm(hidden, dtype);
        for (int i = 0; i < sizes.Layers; i++)
        {
            Attention attention = first
                ? new Phi3Attention(i, heads, kvHeads, sizes.HeadDim, dtype)
                : new Attention(i, heads, kvHeads, sizes.HeadDim, dtype, joint, dropout);
            layers.Add(new LlamaDecoderLayer(attention, hidden, sizes.Intermediate, dtype));
        }

        _positions = positions;
        RegisterComponents();
    }

    public override Tensor forward(CausalLMModelInput input)
    {
        _cache = input.OverrideCache;
        (Tensor ids, int past) = (input.InputIds, input.PastKeyValuesLength);
        Tensor hidden = embed_tokens.forward(ids);
        Tensor positions = arange(past, past + ids.shape[1], ScalarType.Int64).unsqueeze(0);
        RotaryEmbeddingOutput turns = _rotaryEmb.forward(new RotaryEmbeddingInput(hidden, positions, past));
        object? embeddings = _positions switch
        {
            Positions.Once => turns,
            Positions.OnceAsTuple => (turns.Cos, turns.Sin),
            _ => null,
        };
        foreach (LlamaDecoderLayer layer in layers)
        {
            using Tensor before = hidden;
            hidden = layer.forward(new AttentionInput(
                hidden, positions, embeddings, input.AttentionMask, _cache, input.OutputAttentions)).HiddenStates;
        }

        return norm.forward(hidden);
    }
}

internal sealed class LlamaForCausalLM : nn.Module<Tensor, Tensor>
{
    private readonly LlamaModel model;
    private readonly GenAILinear lm_head;

    public LlamaForCausalLM(
        int heads,
        int kvHeads,
        Positions positions = Positions.Once,
        ScalarType dtype = ScalarType.Float32,
        bool joint = false,
        double dropout = 0,
        bool first = false,
        int? window = null,
        ModelSizes? sizes = null)
        : base(nameof(LlamaForCausalLM))
    {
        sizes ??= new ModelSizes();
        model = new LlamaModel(heads, kvHeads, positions, dtype, joint, dropout, first, window, sizes);
        lm_head = new GenAILinear(heads * sizes.HeadDim, sizes.Vocabulary, dtype, hasBias: true);
        RegisterComponents();
    }

    public override Tensor forward(Tensor input) => Logits(input, 0, null, CausalMask(input, 0));

    public Tensor Logits(Tensor ids, int past, IKVCache? cache, Tensor? mask, bool outputAttentions = false) =>
        lm_head.forward(Hidden(ids, past, cache, mask, outputAttentions));

    /// <summary>The logits of the last tokens alone, [batch, 1, vocabulary].</summary>
    public Tensor LastLogits(Tensor ids, int past, IKVCache? cache, Tensor? mask) =>
        lm_head.forward(Hidden(ids, past, cache, mask, outputAttentions: false).narrow(1, -1, 1));

    private Tensor Hidden(Tensor ids, int past, IKVCache? cache, Tensor? mask, bool outputAttentions) =>
        model.forward(new CausalLMModelInput(ids, mask, past, cache, outputAttentions));

    /// <summary>
    /// [batch, 1, n, past + n], as the package's pipeline makes it, which tells of the padding of new tokens alone: padding is visible
    /// after the prompt. Of a prompt with a sliding window a token sees the window and one more; a single token whose past is longer sees
    /// nothing at all.
    /// </summary>
    public static Tensor PipelineMask(Tensor ids, int past, int? window, long[]? padding = null, ScalarType dtype = ScalarType.Float32)
    {
        Tensor mask = CausalMask(ids, past, past == 0 ? padding : null, dtype);
        if (window is int tokens)
        {
            Tensor hidden = ones(ids.shape[1], ids.shape[1], dtype: ScalarType.Bool).tril(past - tokens - 1);
            mask = mask.masked_fill(hidden, finfo(dtype).min);
        }

        return mask;
    }

    /// <summary>[batch, 1, n, past + n]; also hides each sequence's first padding tokens.</summary>
    public static Tensor CausalMask(Tensor ids, int past, long[]? padding = null, ScalarType dtype = ScalarType.Float32)
    {
        (long batch, long tokens) = (ids.shape[0], ids.shape[1]);
        Tensor column = arange(past + tokens).reshape(1, 1, 1, -1);
        Tensor hidden = column > arange(past, past + tokens).reshape(1, 1, -1, 1);
        hidden = hidden.logical_or(column < tensor(padding ?? new long[batch]).reshape(-1, 1, 1, 1));
        return zeros(batch, 1, tokens, past + tokens, dtype: dtype).masked_fill(hidden, finfo(dtype).min);
    }
}
