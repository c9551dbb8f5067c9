using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using IBlock = TorchSharp.torch.nn.Module<
    TorchSharp.torch.Tensor,
    TorchSharp.torch.Tensor?,
    Mustafar.Tests.DropIn.Models.LlmSharp.IRotary?,
    Mustafar.Tests.DropIn.Models.LlmSharp.IKvCache?,
    TorchSharp.torch.Tensor>;

// Names, fields and the order of calls are those of llm-sharp.
#pragma warning disable IDE1006, CA1051, CA1707, CA1715

namespace Mustafar.Tests.DropIn.Models.LlmSharp;

public interface IRotary : IDisposable
{
    (Tensor, Tensor) apply(Tensor query, Tensor key);

    IEnumerable<Tensor> weights { get; }
}

public interface IKvCache : IDisposable
{
    long size { get; }

    (Tensor, Tensor) update(Tensor k, Tensor v);

    IEnumerable<Tensor> weights { get; }
}

public sealed class SlowRotary(Tensor cos, Tensor sin) : IRotary
{
    public IEnumerable<Tensor> weights => [cos, sin];

    public (Tensor, Tensor) apply(Tensor query, Tensor key) => (Turn(query), Turn(key));

    public void Dispose()
    {
        cos.Dispose();
        sin.Dispose();
    }

    private Tensor Turn(Tensor x)
    {
        Tensor[] halves = x.chunk(2, -1);
        return (x * cos) + (cat([-halves[1], halves[0]], -1) * sin);
    }
}

public sealed class KvCache : IKvCache
{
    public Tensor? k_cache;
    public Tensor? v_cache;

    public long size => k_cache?.shape[1] ?? 0;

    public IEnumerable<Tensor> weights => new[] { k_cache, v_cache }.OfType<Tensor>();

    public (Tensor, Tensor) update(Tensor k, Tensor v)
    {
        using DisposeScope scope = NewDisposeScope();
        if (k_cache is not null)
        {
            k = cat([k_cache, k], 1);
            k_cache.Dispose();
        }

        if (v_cache is not null)
        {
            v = cat([v_cache, v], 1);
            v_cache.Dispose();
        }

        k_cache = k.detach();
        v_cache = v.detach();
        scope.Detach(k_cache, v_cache);
        scope.MoveToOuter(k, v);
        return (k, v);
    }

    public void Dispose()
    {
        k_cache?.Dispose();
        v_cache?.Dispose();
    }
}

/// <summary>Reserves room, and counts what it holds.</summary>
public sealed class FastKvCache(long batch, long heads, long headDim, ScalarType dtype) : IKvCache
{
    public Tensor k_cache = zeros(batch, 512, heads, headDim, dtype: dtype);
    public Tensor v_cache = zeros(batch, 512, heads, headDim, dtype: dtype);

    public long size { get; private set; }

    public IEnumerable<Tensor> weights => [k_cache, v_cache];

    public (Tensor, Tensor) update(Tensor k, Tensor v)
    {
        k_cache.narrow(1, size, k.shape[1]).copy_(k);
        v_cache.narrow(1, size, k.shape[1]).copy_(v);
        size += k.shape[1];
        return (k_cache.narrow(1, 0, size), v_cache.narrow(1, 0, size));
    }

    public void Dispose()
    {
        k_cache.Dispose();
        v_cache.Dispose();
    }
}

public class LlamaAttention : IBlock
{
    public long n_head;
    public long n_kv_head;
    public long d_head;
    public int n_groups;
    public nn.Module<Tensor, Tensor> qkv_proj;
    public nn.Module<Tensor, Tensor> o_proj;
    public Dropout dropout;

    public LlamaAttention(int heads, int kvHeads, ScalarType dtype, double dropout_rate)
        : base("LlamaAttention")
    {
        (n_head, n_kv_head, d_head, n_groups) = (heads, kvHeads, Subject.HeadDim, heads / kvHeads);
        qkv_proj = nn.Linear(heads * d_head, d_head * (n_head + (2 * n_kv_head)), dtype: dtype);
        o_proj = nn.Linear(heads * d_head, heads * d_head, hasBias: false, dtype: dtype);
        dropout = nn.Dropout(dropout_rate);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x, Tensor? attention_mask, IRotary? freqs_cis, IKvCache? kv_cache)
    {
        using DisposeScope scope = NewDisposeScope();
        (long batch, long tokens) = (x.shape[0], x.shape[1]);
        Tensor[] split = qkv_proj.call(x).split([d_head * n_head, d_head * n_kv_head, d_head * n_kv_head], -1);
        Tensor q = split[0].view(batch, tokens, n_head, d_head);
        Tensor k = split[1].view(batch, tokens, n_kv_head, d_head);
        Tensor v = split[2].view(batch, tokens, n_kv_head, d_head);
        if (freqs_cis is not null)
        {
            (q, k) = freqs_cis.apply(q, k);
        }

        if (kv_cache is not null)
        {
            (k, v) = kv_cache.update(k, v);
        }

        q = q.permute(0, 2, 1, 3);
        k = k.permute(0, 2, 3, 1).repeat_interleave(n_groups, 1);
        v = v.permute(0, 2, 1, 3).repeat_interleave(n_groups, 1);
        Tensor qk = matmul(q, k) / Math.Sqrt(d_head);
        if (attention_mask is not null)
        {
            qk = qk + attention_mask;
        }

        Tensor scores = dropout.call(nn.functional.softmax(qk, -1, ScalarType.Float32).type_as(x));
        Tensor output = matmul(scores, v).permute(0, 2, 1, 3).reshape(batch, tokens, -1);
        return o_proj.call(output).MoveToOuterDisposeScope();
    }
}

/// <summary>Attends by one call of torch; the package's own caches go with it.</summary>
public class FusedLlamaAttention(int heads, int kvHeads, ScalarType dtype, double dropout_rate)
    : LlamaAttention(heads, kvHeads, dtype, dropout_rate)
{
    protected double dropout_rate = dropout_rate;

    public override Tensor forward(Tensor x, Tensor? attention_mask, IRotary? freqs_cis, IKvCache? kv_cache)
    {
        using DisposeScope scope = NewDisposeScope();
        (long batch, long tokens) = (x.shape[0], x.shape[1]);
        Tensor[] split = qkv_proj.call(x).split([d_head * n_head, d_head * n_kv_head, d_head * n_kv_head], -1);
        Tensor q = split[0].view(batch, tokens, n_head, d_head);
        Tensor k = split[1].view(batch, tokens, n_kv_head, d_head);
        Tensor v = split[2].view(batch, tokens, n_kv_head, d_head);
        if (freqs_cis is not null)
        {
            (q, k) = freqs_cis.apply(q, k);
        }

        if (kv_cache is not null)
        {
            (k, v) = kv_cache.update(k, v);
        }

        k = k.permute(0, 2, 1, 3).repeat_interleave(n_groups, 1);
        v = v.permute(0, 2, 1, 3).repeat_interleave(n_groups, 1);
        Tensor output = nn.functional.scaled_dot_product_attention(
            q.permute(0, 2, 1, 3), k, v, attention_mask!, training ? dropout_rate : 0);
        return o_proj.call(output.permute(0, 2, 1, 3).reshape(batch, tokens, -1)).MoveToOuterDisposeScope();
    }
}

public class LlamaBlock : IBlock
{
    public nn.Module<Tensor, Tensor> attn_ln;
    public IBlock attn;
    public nn.Module<Tensor, Tensor> ffn;

    public LlamaBlock(int heads, int kvHeads, ScalarType dtype, double dropout, bool fused)
        : base("LlamaBlock")
    {
        int hidden = heads * Subject.HeadDim;
        attn_ln = nn.LayerNorm(hidden, dtype: dtype);
        attn = fused ? new FusedLlamaAttention(heads, kvHeads, dtype, dropout) : new LlamaAttention(heads, kvHeads, dtype, dropout);
        ffn = nn.Linear(hidden, hidden, dtype: dtype);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x, Tensor? attention_mask, IRotary? freqs_cis, IKvCache? kv_cache)
    {
        x = x + attn.call(attn_ln.call(x), attention_mask, freqs_cis, kv_cache);
        return x + ffn.call(x).tanh();
    }
}

public class LlamaModel : nn.Module<Tensor, List<IKvCache>?, Tensor>
{
    public nn.Module<Tensor, Tensor> word_embedding;
    public ModuleList<IBlock> layers;
    public nn.Module<Tensor, Tensor> lm_head;

    public LlamaModel(int heads, int kvHeads, ScalarType dtype = ScalarType.Float32, double dropout = 0, bool fused = false)
        : base("LlamaModel")
    {
        int hidden = heads * Subject.HeadDim;
        word_embedding = nn.Embedding(Subject.Vocabulary, hidden, dtype: dtype);
        layers = nn.ModuleList(
            Enumerable.Range(0, Subject.Layers).Select(IBlock (_) => new LlamaBlock(heads, kvHeads, dtype, dropout, fused)).ToArray());
        lm_head = nn.Linear(hidden, Subject.Vocabulary, hasBias: false, dtype: dtype);
        RegisterComponents();
    }

    public override Tensor forward(Tensor input_ids, List<IKvCache>? past_key_values) => forward(input_ids, past_key_values, null);

    /// <param name="input_ids">[batch, n].</param>
    /// <param name="past_key_values">One cache for each layer.</param>
    /// <param name="attention_mask">[batch, past + n]: 0 at padding, 1 at tokens.</param>
    public Tensor forward(Tensor input_ids, List<IKvCache>? past_key_values, Tensor? attention_mask)
    {
        Tensor h = word_embedding.call(input_ids);
        long past = past_key_values?[0].size ?? 0;
        (long batch, long tokens) = (input_ids.shape[0], input_ids.shape[1]);
        attention_mask ??= ones(batch, past + tokens, dtype: ScalarType.Int64);
        // Positions count from 1.
        Tensor positions = cumsum(attention_mask, 1).narrow(1, past, tokens).to(ScalarType.Float32);
        Tensor mask = ones(tokens, past + tokens, dtype: ScalarType.Int64).tril(past).unsqueeze(0) * attention_mask.unsqueeze(1);
        mask = ((mask - 1) * 1e10).unsqueeze(1).type_as(h);
        Tensor rates = pow(10000, arange(0, Subject.HeadDim, 2, dtype: ScalarType.Float32) / Subject.HeadDim).reciprocal();
        Tensor angles = positions.unsqueeze(-1) * rates;
        angles = cat([angles, angles], -1).unsqueeze(2);
        using SlowRotary rotary = new(angles.cos().type_as(h), angles.sin().type_as(h));
        for (int i = 0; i < layers.Count; i++)
        {
            h = layers[i].call(h, mask, rotary, past_key_values?[i]);
        }

        return lm_head.call(h);
    }
}
