using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

// Names, fields and the order of calls are those of Microsoft.ML.GenAI.
#pragma warning disable IDE1006, CA1710, CA1852

namespace Mustafar.Tests.DropIn.Models.GenAI;

public interface IKVCache : IDictionary<int, (Tensor, Tensor)>, IDisposable
{
    (Tensor, Tensor) UpdateKVCache(Tensor key, Tensor value, int layerIndex);

    int GetSeqLen(int layerIndex = 0);

    int? GetMaxLength();

    int GetUsableLength(int newSeqLen, int layerIndex = 0);
}

public class DynamicKVCache : Dictionary<int, (Tensor, Tensor)>, IKVCache
{
    private readonly DisposeScope _disposeScope = NewDisposeScope();

    public (Tensor, Tensor) UpdateKVCache(Tensor key, Tensor value, int layerIndex)
    {
        if (TryGetValue(layerIndex, out (Tensor Keys, Tensor Values) past))
        {
            past.Keys.DetachFromDisposeScope();
            past.Values.DetachFromDisposeScope();
            this[layerIndex] = (
                cat([past.Keys, key], -2).MoveToOtherDisposeScope(_disposeScope),
                cat([past.Values, value], -2).MoveToOtherDisposeScope(_disposeScope));
            past.Keys.Dispose();
            past.Values.Dispose();
        }
        else
        {
            Add(layerIndex, (key.MoveToOtherDisposeScope(_disposeScope), value.MoveToOtherDisposeScope(_disposeScope)));
        }

        return this[layerIndex];
    }

    public int GetSeqLen(int layerIndex = 0) => TryGetValue(layerIndex, out (Tensor Keys, Tensor) past) ? (int)past.Keys.shape[^2] : 0;

    public int? GetMaxLength() => null;

    public int GetUsableLength(int newSeqLen, int layerIndex = 0) => GetSeqLen(layerIndex);

    public void Dispose()
    {
        _disposeScope.Dispose();
        GC.SuppressFinalize(this);
    }
}

internal sealed class AttentionInput(
    Tensor hiddenStates,
    Tensor positionIds,
    object? positionalEmbeddings,
    Tensor? attentionMask = null,
    IKVCache? cache = null,
    bool outputAttentions = false)
{
    public Tensor HiddenStates { get; set; } = hiddenStates;

    public Tensor? AttentionMask { get; set; } = attentionMask;

    public Tensor PositionIds { get; set; } = positionIds;

    /// <summary>A <see cref="RotaryEmbeddingOutput"/>, or in other versions a tuple or none; so the type says less than there.</summary>
    public object? PositionalEmbeddings { get; set; } = positionalEmbeddings;

    public IKVCache? Cache { get; set; } = cache;

    public bool OutputAttentions { get; set; } = outputAttentions;
}

internal sealed class AttentionOutput(Tensor hiddenStates, Tensor? attentions = null, IKVCache? cache = null)
{
    public Tensor HiddenStates { get; set; } = hiddenStates;

    public Tensor? Attentions { get; set; } = attentions;

    public IKVCache? Cache { get; set; } = cache;
}

internal sealed class RotaryEmbeddingInput(Tensor input, Tensor positionIds, int? seqLen = null)
{
    public Tensor Input { get; set; } = input;

    public Tensor PositionIds { get; set; } = positionIds;

    public int? SeqLen { get; set; } = seqLen;
}

internal sealed class RotaryEmbeddingOutput(Tensor cos, Tensor sin)
{
    public Tensor Cos { get; set; } = cos;

    public Tensor Sin { get; set; } = sin;
}

internal sealed class RotaryEmbedding(int headDim) : nn.Module<RotaryEmbeddingInput, RotaryEmbeddingOutput>(nameof(RotaryEmbedding))
{
    public override RotaryEmbeddingOutput forward(RotaryEmbeddingInput input)
    {
        Tensor rates = pow(10000, arange(0, headDim, 2, dtype: ScalarType.Float32) / headDim).reciprocal();
        Tensor angles = input.PositionIds.to(ScalarType.Float32).unsqueeze(-1) * rates;
        angles = cat([angles, angles], -1);
        return new(angles.cos().to(input.Input.dtype), angles.sin().to(input.Input.dtype));
    }
}

/// <summary>Its weight is a buffer, and it computes in f32, as in the package.</summary>
internal class GenAILinear : nn.Module<Tensor, Tensor>
{
    protected Tensor? weight;
    private readonly Tensor? bias;

    public GenAILinear(long inputs, long outputs, ScalarType dtype, bool hasBias = false)
        : base(nameof(GenAILinear))
    {
        weight = (randn(outputs, inputs) / Math.Sqrt(inputs)).to(dtype);
        bias = hasBias ? randn(outputs).to(dtype) : null;
        RegisterComponents();
    }

    public override Tensor forward(Tensor input) => Product(input, weight!.to_type(ScalarType.Float32));

    protected Tensor Product(Tensor input, Tensor weight)
    {
        Tensor output = matmul(input.to_type(ScalarType.Float32), weight.t());
        return (bias is null ? output : output + bias.to_type(ScalarType.Float32)).to_type(input.dtype);
    }
}

internal class QuantizedLinear(long inputs, long outputs, ScalarType dtype, bool hasBias = false)
    : GenAILinear(inputs, outputs, dtype, hasBias)
{
    public void Int8()
    {
        Tensor scale = 127 / weight!.to(ScalarType.Float32).abs().amax([1], keepdim: true);
        register_buffer("8bit_weight", (weight * scale).round().to(ScalarType.Int8));
        register_buffer("scale", scale);
        _internal_buffers.Remove("weight");
        weight.Dispose();
        weight = null;
    }

    public override Tensor forward(Tensor input) => weight is not null
        ? base.forward(input)
        : Product(input, get_buffer("8bit_weight")!.to(ScalarType.Float32) / get_buffer("scale")!);
}

/// <summary>Where rotary positions are computed: for all layers at once, or in each.</summary>
internal enum Positions
{
    Once,
    OnceAsTuple,
    InEachLayer,
}

internal class Attention : nn.Module<AttentionInput, AttentionOutput>
{
    private readonly int _layerIdx;
    private readonly double _attentionDropout;
    private readonly int _numHeads;
    private readonly int _headDim;
    private readonly int _numKeyValueHeads;
    private readonly QuantizedLinear o_proj;
    private readonly QuantizedLinear? qkv_proj;
    private readonly QuantizedLinear? q_proj;
    private readonly QuantizedLinear? k_proj;
    private readonly QuantizedLinear? v_proj;
    private readonly nn.Module<RotaryEmbeddingInput, RotaryEmbeddingOutput> rotary_emb;

    public Attention(
        int layerIdx, int numHeads, int numKeyValueHeads, int headDim, ScalarType dtype, bool useQkvProj, double attentionDropout)
        : base(nameof(Attention))
    {
        (_layerIdx, _numHeads, _numKeyValueHeads, _headDim) = (layerIdx, numHeads, numKeyValueHeads, headDim);
        _attentionDropout = attentionDropout;
        int hidden = numHeads * headDim;
        int kv = numKeyValueHeads * headDim;
        o_proj = new QuantizedLinear(hidden, hidden, dtype);
        if (useQkvProj)
        {
            qkv_proj = new QuantizedLinear(hidden, hidden + (2 * kv), dtype);
        }
        else
        {
            (q_proj, k_proj, v_proj) = (new(hidden, hidden, dtype), new(hidden, kv, dtype), new(hidden, kv, dtype));
        }

        rotary_emb = new RotaryEmbedding(headDim);
    }

    public override AttentionOutput forward(AttentionInput input)
    {
        using DisposeScope scope = NewDisposeScope();
        long hidden = _numHeads * _headDim;
        long kv = _numKeyValueHeads * _headDim;
        Tensor[] states = qkv_proj is not null
            ? qkv_proj.forward(input.HiddenStates).split([hidden, kv, kv], -1)
            : [q_proj!.forward(input.HiddenStates), k_proj!.forward(input.HiddenStates), v_proj!.forward(input.HiddenStates)];
        Tensor query = Heads(states[0], _numHeads);
        Tensor key = Heads(states[1], _numKeyValueHeads);
        Tensor value = Heads(states[2], _numKeyValueHeads);
        (Tensor cos, Tensor sin) = input.PositionalEmbeddings switch
        {
            RotaryEmbeddingOutput once => (once.Cos, once.Sin),
            ValueTuple<Tensor, Tensor> pair => pair,
            _ => OwnPositions(input, value),
        };
        (query, key) = (Turn(query, cos, sin), Turn(key, cos, sin));
        if (input.Cache is not null)
        {
            (key, value) = input.Cache.UpdateKVCache(key, value, _layerIdx);
        }

        int group = _numHeads / _numKeyValueHeads;
        Tensor scores = matmul(query, key.repeat_interleave(group, 1).transpose(2, 3)) / Math.Sqrt(_headDim);
        if (input.AttentionMask is not null)
        {
            scores = scores + input.AttentionMask;
        }

        Tensor weights = nn.functional.softmax(scores, -1, ScalarType.Float32).to(value.dtype);
        weights = nn.functional.dropout(weights, _attentionDropout, training);
        Tensor output = matmul(weights, value.repeat_interleave(group, 1)).transpose(1, 2).reshape(input.HiddenStates.shape);
        return new(
            o_proj.forward(output).MoveToOuterDisposeScope(),
            input.OutputAttentions ? weights.MoveToOuterDisposeScope() : null,
            input.Cache);
    }

    private (Tensor, Tensor) OwnPositions(AttentionInput input, Tensor value)
    {
        int length = (int)value.shape[2];
        length += input.Cache?.GetUsableLength(length, _layerIdx) ?? 0;
        RotaryEmbeddingOutput output = rotary_emb.forward(new RotaryEmbeddingInput(value, input.PositionIds, length));
        return (output.Cos, output.Sin);
    }

    private Tensor Heads(Tensor x, int heads) => x.view(x.shape[0], x.shape[1], heads, _headDim).transpose(1, 2);

    private static Tensor Turn(Tensor x, Tensor cos, Tensor sin)
    {
        Tensor[] halves = x.chunk(2, -1);
        return (x * cos.unsqueeze(1)) + (cat([-halves[1], halves[0]], -1) * sin.unsqueeze(1));
    }
}

/// <summary>What the first versions have for Phi-3.</summary>
internal class Phi3Attention(int layerIdx, int numHeads, int numKeyValueHeads, int headDim, ScalarType dtype)
    : Attention(layerIdx, numHeads, numKeyValueHeads, headDim, dtype, useQkvProj: true, attentionDropout: 0);

internal sealed class LlamaDecoderLayer : nn.Module<AttentionInput, AttentionOutput>
{
    private readonly QuantizedLinear mlp;
    private readonly LayerNorm input_layernorm;
    private readonly Attention self_attn;

    public LlamaDecoderLayer(Attention attention, int hidden, ScalarType dtype)
        : base(nameof(LlamaDecoderLayer))
    {
        self_attn = attention;
        mlp = new QuantizedLinear(hidden, hidden, dtype);
        input_layernorm = nn.LayerNorm(hidden, dtype: dtype);
    }

    public override AttentionOutput forward(AttentionInput input)
    {
        using DisposeScope scope = NewDisposeScope();
        AttentionOutput attended = self_attn.forward(new AttentionInput(
            input_layernorm.forward(input.HiddenStates), input.PositionIds, input.PositionalEmbeddings, input.AttentionMask, input.Cache,
            input.OutputAttentions));
        Tensor hidden = input.HiddenStates + attended.HiddenStates;
        return new(
            (hidden + mlp.forward(hidden).tanh()).MoveToOuterDisposeScope(),
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
    private readonly RotaryEmbedding _rotaryEmb = new(Subject.HeadDim);
    private readonly Positions _positions;
    private readonly Phi3Config _config;
    private IKVCache? _cache;

    public LlamaModel(int heads, int kvHeads, Positions positions, ScalarType dtype, bool joint, double dropout, bool first, int? window)
        : base(nameof(LlamaModel))
    {
        _config = new Phi3Config { SlidingWindow = window };
        int hidden = heads * Subject.HeadDim;
        embed_tokens = nn.Embedding(Subject.Vocabulary, hidden, dtype: dtype);
        for (int i = 0; i < Subject.Layers; i++)
        {
            Attention attention = first
                ? new Phi3Attention(i, heads, kvHeads, Subject.HeadDim, dtype)
                : new Attention(i, heads, kvHeads, Subject.HeadDim, dtype, joint, dropout);
            layers.Add(new LlamaDecoderLayer(attention, hidden, dtype));
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
            hidden = layer.forward(new AttentionInput(
                hidden, positions, embeddings, input.AttentionMask, _cache, input.OutputAttentions)).HiddenStates;
        }

        return hidden;
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
        int? window = null)
        : base(nameof(LlamaForCausalLM))
    {
        model = new LlamaModel(heads, kvHeads, positions, dtype, joint, dropout, first, window);
        lm_head = new GenAILinear(heads * Subject.HeadDim, Subject.Vocabulary, dtype, hasBias: true);
        RegisterComponents();
    }

    public override Tensor forward(Tensor input) => Logits(input, 0, null, CausalMask(input, 0));

    public Tensor Logits(Tensor ids, int past, IKVCache? cache, Tensor? mask, bool outputAttentions = false) =>
        lm_head.forward(model.forward(new CausalLMModelInput(ids, mask, past, cache, outputAttentions)));

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
