using static TorchSharp.torch;

namespace Mustafar.Tests.Cache.Eviction;

/// <summary>Keys and values of one sequence in all layers, dense in double precision, of which tokens can be dropped.</summary>
internal sealed class PlainTokens(int layers, int kvHeads)
{
    /// <summary>Keys of each layer, [num_kv_heads, tokens, head_dim].</summary>
    public Tensor?[] Keys { get; } = new Tensor?[layers];

    /// <summary>Values of each layer, in the same form.</summary>
    public Tensor?[] Values { get; } = new Tensor?[layers];

    /// <summary>Attention weights of each layer's latest step, [num_kv_heads, group, n, tokens].</summary>
    public Tensor[] Weights { get; } = new Tensor[layers];

    public int Length => Keys[0] is null ? 0 : (int)Keys[0]!.size(1);

    /// <summary>Adds tokens to a layer, and attends from them: each sees those before and itself.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="query">[1, num_heads, n, head_dim].</param>
    /// <param name="keys">[1, num_kv_heads, n, head_dim].</param>
    /// <param name="values">[1, num_kv_heads, n, head_dim].</param>
    /// <returns>[1, num_heads, n, head_dim].</returns>
    public Tensor Attend(int layer, Tensor query, Tensor keys, Tensor values)
    {
        Keys[layer] = Joined(Keys[layer], keys);
        Values[layer] = Joined(Values[layer], values);
        long n = query.size(2), tokens = Keys[layer]!.size(1), group = query.size(1) / kvHeads;
        Tensor rows = Double(query[0]).reshape(kvHeads, group, n, -1);
        Tensor scores = matmul(rows, Keys[layer]!.transpose(1, 2).unsqueeze(1)) / Math.Sqrt(query.size(3));
        Tensor hidden = ones(n, tokens, dtype: ScalarType.Bool).triu(tokens - n + 1);
        Weights[layer] = scores.masked_fill(hidden, double.NegativeInfinity).softmax(-1);
        return matmul(Weights[layer], Values[layer]!.unsqueeze(1)).reshape(1, query.size(1), n, -1);
    }

    /// <summary>Drops all tokens but some: Int64 [num_layers, num_kv_heads, count].</summary>
    public void Keep(Tensor tokens)
    {
        for (int layer = 0; layer < layers; layer++)
        {
            Keys[layer] = Kept(Keys[layer]!, tokens[layer]);
            Values[layer] = Kept(Values[layer]!, tokens[layer]);
        }
    }

    /// <summary>Drops the latest tokens.</summary>
    public void Truncate(int length)
    {
        for (int layer = 0; layer < layers; layer++)
        {
            Keys[layer] = Keys[layer]!.narrow(1, 0, length);
            Values[layer] = Values[layer]!.narrow(1, 0, length);
        }
    }

    /// <summary>Changes what is stored of some tokens, all from a first one on or before an end.</summary>
    public void Change(int end, Func<Tensor, bool, Tensor> change)
    {
        for (int layer = 0; layer < layers && end > 0; layer++)
        {
            Keys[layer] = cat([change(Keys[layer]!.narrow(1, 0, end), true), Keys[layer]!.narrow(1, end, Length - end)], 1);
            Values[layer] = cat([change(Values[layer]!.narrow(1, 0, end), false), Values[layer]!.narrow(1, end, Values[layer]!.size(1) - end)], 1);
        }
    }

    public PlainTokens Copy()
    {
        PlainTokens copy = new(layers, kvHeads);
        Keys.CopyTo(copy.Keys, 0);
        Values.CopyTo(copy.Values, 0);
        return copy;
    }

    private static Tensor Kept(Tensor all, Tensor tokens) => all.gather(1, tokens.unsqueeze(-1).expand(-1, -1, all.size(2)));

    private static Tensor Joined(Tensor? before, Tensor added) => before is null ? Double(added[0]) : cat([before, Double(added[0])], 1);

    private static Tensor Double(Tensor tensor) => tensor.cpu().to(ScalarType.Float64);
}
