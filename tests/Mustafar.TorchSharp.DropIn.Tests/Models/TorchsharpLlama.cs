using TorchSharp.Modules;
using static TorchSharp.torch;

// Names, fields and the order of calls are those of Torchsharp-llama.
#pragma warning disable IDE1006

namespace Mustafar.Tests.DropIn.Models.TorchsharpLlama;

public class SelfAttention : nn.Module<Tensor, int, Tensor, Tensor?, Tensor>
{
    private readonly int nKVHeads;
    private readonly int nHeadsQ;
    private readonly int headDim;
    private readonly Linear wq;
    private readonly Linear wk;
    private readonly Linear wv;
    private readonly Linear wo;
    private Tensor cache_k;
    private Tensor cache_v;

    public SelfAttention(int heads, int kvHeads, ScalarType dtype)
        : base(nameof(SelfAttention))
    {
        (nHeadsQ, nKVHeads, headDim) = (heads, kvHeads, Subject.HeadDim);
        wq = nn.Linear(heads * headDim, heads * headDim, hasBias: false, dtype: dtype);
        wk = nn.Linear(heads * headDim, kvHeads * headDim, hasBias: false, dtype: dtype);
        wv = nn.Linear(heads * headDim, kvHeads * headDim, hasBias: false, dtype: dtype);
        wo = nn.Linear(heads * headDim, heads * headDim, hasBias: false, dtype: dtype);
        RegisterComponents();
        cache_k = zeros(3, 512, kvHeads, headDim, dtype: dtype);
        cache_v = zeros(3, 512, kvHeads, headDim, dtype: dtype);
    }

    public override Tensor forward(Tensor input, int startPos, Tensor freqsComplex, Tensor? mask = null)
    {
        (long batch, long tokens) = (input.shape[0], input.shape[1]);
        Tensor xq = Turn(wq.forward(input).view(batch, tokens, nHeadsQ, headDim), freqsComplex);
        Tensor xk = Turn(wk.forward(input).view(batch, tokens, nKVHeads, headDim), freqsComplex);
        Tensor xv = wv.forward(input).view(batch, tokens, nKVHeads, headDim);
        long end = startPos + tokens;
        cache_k.narrow(0, 0, batch).narrow(1, startPos, tokens).copy_(xk);
        cache_v.narrow(0, 0, batch).narrow(1, startPos, tokens).copy_(xv);
        Tensor keys = cache_k.narrow(0, 0, batch).narrow(1, 0, end).repeat_interleave(nHeadsQ / nKVHeads, 2).transpose(1, 2);
        Tensor values = cache_v.narrow(0, 0, batch).narrow(1, 0, end).repeat_interleave(nHeadsQ / nKVHeads, 2).transpose(1, 2);
        Tensor scores = matmul(xq.transpose(1, 2), keys.transpose(2, 3)) / Math.Sqrt(headDim);
        if (mask is not null)
        {
            scores = scores + mask;
        }

        Tensor output = matmul(nn.functional.softmax(scores, -1), values);
        return wo.forward(output.transpose(1, 2).contiguous().view(batch, tokens, -1));
    }

    private static Tensor Turn(Tensor x, Tensor turns)
    {
        long[] shape = x.shape;
        Tensor pairs = x.to(ScalarType.Float32).reshape(shape[0], shape[1], shape[2], -1, 2).view_as_complex();
        return (pairs * turns.unsqueeze(0).unsqueeze(2)).view_as_real().reshape(shape).type_as(x);
    }
}

public class EncoderBlock : nn.Module<Tensor, int, Tensor, Tensor?, Tensor>
{
    // Not readonly, and not registered by this class: the list's owner does it.
    private SelfAttention attention;
    private Linear feed_forward;
    private LayerNorm attention_norm;

    public EncoderBlock(int heads, int kvHeads, ScalarType dtype)
        : base(nameof(EncoderBlock))
    {
        int hidden = heads * Subject.HeadDim;
        attention = new SelfAttention(heads, kvHeads, dtype);
        feed_forward = nn.Linear(hidden, hidden, dtype: dtype);
        attention_norm = nn.LayerNorm(hidden, dtype: dtype);
    }

    public override Tensor forward(Tensor input, int startPos, Tensor freqsComplex, Tensor? mask)
    {
        Tensor x = attention.forward(attention_norm.forward(input), startPos, freqsComplex, mask) + input;
        return feed_forward.forward(x).tanh() + x;
    }
}

public class Transformer : nn.Module<Tensor, int, Tensor>
{
    private readonly Embedding tok_embeddings;
    private readonly ModuleList<nn.Module<Tensor, int, Tensor, Tensor?, Tensor>> layers;
    private readonly Linear output;
    private readonly Tensor freqs_complex;

    public Transformer(int heads, int kvHeads, ScalarType dtype)
        : base(nameof(Transformer))
    {
        int hidden = heads * Subject.HeadDim;
        tok_embeddings = nn.Embedding(Subject.Vocabulary, hidden, dtype: dtype);
        layers = nn.ModuleList<nn.Module<Tensor, int, Tensor, Tensor?, Tensor>>();
        for (int i = 0; i < Subject.Layers; i++)
        {
            layers.Add(new EncoderBlock(heads, kvHeads, dtype));
        }

        output = nn.Linear(hidden, Subject.Vocabulary, hasBias: false, dtype: dtype);
        RegisterComponents();
        Tensor rates = pow(10000, arange(0, Subject.HeadDim, 2, dtype: ScalarType.Float32) / Subject.HeadDim).reciprocal();
        Tensor angles = outer(arange(512, dtype: ScalarType.Float32), rates);
        freqs_complex = polar(ones_like(angles), angles);
    }

    public override Tensor forward(Tensor tokens, int startPos)
    {
        long length = tokens.shape[1];
        Tensor h = tok_embeddings.forward(tokens);
        Tensor? mask = length > 1
            ? hstack([zeros(length, startPos), full([length, length], float.NegativeInfinity).triu(1)]).type_as(h)
            : null;
        foreach (nn.Module<Tensor, int, Tensor, Tensor?, Tensor> layer in layers)
        {
            h = layer.forward(h, startPos, freqs_complex.narrow(0, startPos, length), mask);
        }

        return output.forward(h);
    }
}
