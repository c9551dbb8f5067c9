using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>A Llama model in plain operations in double precision, for one sequence, token by token. Each KV head of each layer has its own tokens,
/// and may drop some.</summary>
internal sealed class PlainLlama(LlamaForCausalLM model)
{
    private readonly Dictionary<string, Tensor> _weights =
        model.state_dict().ToDictionary(item => item.Key, item => item.Value.cpu().to(ScalarType.Float64));

    private readonly Head[][] _heads =
    [
        .. Enumerable.Range(0, model.Config.NumLayers).Select(_ => (Head[])[.. Enumerable.Range(0, model.Config.NumKvHeads).Select(_ => new Head())]),
    ];

    private int _position;

    /// <summary>Tokens that each KV head has.</summary>
    public int Length => (int)_heads[0][0].Keys!.size(0);

    /// <summary>Adds a token, which attends to those that are left and to itself.</summary>
    /// <returns>Scores of the next one, Float64 [vocab_size].</returns>
    public Tensor Next(int id)
    {
        Tensor hidden = _weights["model.embed_tokens.weight"][id];
        for (int layer = 0; layer < _heads.Length; layer++)
        {
            string name = $"model.layers.{layer}.";
            hidden += Attention(layer, name + "self_attn.", Norm(hidden, name + "input_layernorm"));
            Tensor normed = Norm(hidden, name + "post_attention_layernorm");
            Tensor gate = Times(name + "mlp.gate_proj", normed);
            hidden += Times(name + "mlp.down_proj", gate * gate.sigmoid() * Times(name + "mlp.up_proj", normed));
        }

        _position++;
        return Times("lm_head", Norm(hidden, "model.norm"));
    }

    /// <summary>Drops tokens.</summary>
    /// <param name="rule">Which of a head's tokens stay, in order, by its attention: for each query so far the weights of the tokens that are left and
    /// that it saw, the mean over the query heads.</param>
    public void Keep(Func<IReadOnlyList<double[]>, IEnumerable<int>> rule)
    {
        foreach (Head head in _heads.SelectMany(heads => heads))
        {
            long[] kept = [.. rule(head.Weights).Select(i => (long)i)];
            (head.Keys, head.Values) = (head.Keys![tensor(kept)], head.Values![tensor(kept)]);
            for (int i = 0; i < head.Weights.Count; i++)
            {
                double[] row = head.Weights[i];
                head.Weights[i] = [.. kept.Where(token => token < row.Length).Select(token => row[token])];
            }
        }
    }

    private Tensor Attention(int layer, string name, Tensor hidden)
    {
        LlamaConfig config = model.Config;
        Tensor queries = Rotated(Times(name + "q_proj", hidden).reshape(config.NumHeads, config.HeadDim));
        Tensor keys = Rotated(Times(name + "k_proj", hidden).reshape(config.NumKvHeads, config.HeadDim));
        Tensor values = Times(name + "v_proj", hidden).reshape(config.NumKvHeads, config.HeadDim);
        int group = config.NumHeads / config.NumKvHeads;
        List<Tensor> outputs = [];
        for (int h = 0; h < config.NumKvHeads; h++)
        {
            Head head = _heads[layer][h];
            head.Keys = Joined(head.Keys, keys.narrow(0, h, 1));
            head.Values = Joined(head.Values, values.narrow(0, h, 1));
            Tensor weights = (matmul(queries.narrow(0, h * group, group), head.Keys.t()) / Math.Sqrt(config.HeadDim)).softmax(-1);
            head.Weights.Add(weights.mean([0]).data<double>().ToArray());
            outputs.Add(matmul(weights, head.Values));
        }

        return Times(name + "o_proj", cat(outputs, 0).reshape(-1));
    }

    // Rotary positions of vectors [heads, head_dim], whose halves are pairs.
    private Tensor Rotated(Tensor vectors)
    {
        int half = model.Config.HeadDim / 2;
        Tensor angles = pow(model.Config.Rotary.Theta, arange(half, dtype: ScalarType.Float64) / -half) * _position;
        (Tensor first, Tensor second) = (vectors.narrow(1, 0, half), vectors.narrow(1, half, half));
        return cat([(first * angles.cos()) - (second * angles.sin()), (second * angles.cos()) + (first * angles.sin())], 1);
    }

    private Tensor Norm(Tensor hidden, string name) => hidden / (hidden.square().mean() + model.Config.RmsNormEps).sqrt() * _weights[name + ".weight"];

    private Tensor Times(string name, Tensor vector) => matmul(_weights[name + ".weight"], vector);

    private static Tensor Joined(Tensor? before, Tensor added) => before is null ? added : cat([before, added], 0);

    private sealed class Head
    {
        public Tensor? Keys { get; set; }

        public Tensor? Values { get; set; }

        public List<double[]> Weights { get; } = [];
    }
}
