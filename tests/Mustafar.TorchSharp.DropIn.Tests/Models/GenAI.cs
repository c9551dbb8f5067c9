using TorchSharp;
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
        weight = empty(outputs, inputs, dtype: dtype).normal_(0, 1 / Math.Sqrt(inputs));
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
