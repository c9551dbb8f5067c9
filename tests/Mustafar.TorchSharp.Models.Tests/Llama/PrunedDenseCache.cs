using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>
/// What a pruned cache must give, done slowly: dense tokens, in which all but the largest channels of the old ones are set to zero.
/// One sequence. With a window, a query sees only so many of the latest tokens, its own included.
/// </summary>
internal sealed class PrunedDenseCache(KeyValueShape shape, MustafarOptions options, int? window = null, Device? device = null)
    : KeyValueCache(1, shape, ScalarType.Float32, device ?? CPU)
{
    // [heads][token] -> channels
    private readonly List<float[]>[] _keys = NewHeads(shape.NumKvHeads);
    private readonly List<float[]>[] _values = NewHeads(shape.NumKvHeads);
    private int _pruned;

    public override IReadOnlyList<int> Lengths => [_keys[0].Count];

    public override KeyValueCacheMemory Memory => default;

    public override Tensor Forward(
        Tensor query, Tensor keys, Tensor values, double? scale = null, ReadOnlySpan<int> counts = default)
    {
        using DisposeScope scope = NewDisposeScope();
        int past = _keys[0].Count;
        int tokens = (int)query.shape[2];
        Prune(past + 1, past);
        Add(_keys, keys, tokens);
        Add(_values, values, tokens);
        if (tokens == 1)
        {
            Prune(past + 1, past + 1);
        }

        int numHeads = (int)query.shape[1];
        float[] queries = query.cpu().contiguous().data<float>().ToArray();
        float[] outputs = new float[queries.Length];
        for (int i = 0; i < numHeads * tokens; i++)
        {
            int head = i / tokens / (numHeads / NumKvHeads);
            int end = past + (i % tokens) + 1;
            int start = Math.Max(0, end - (window ?? end));
            Attend(
                queries.AsSpan(i * HeadDim, HeadDim),
                _keys[head][start..end],
                _values[head][start..end],
                scale ?? (1 / Math.Sqrt(HeadDim)),
                outputs.AsSpan(i * HeadDim, HeadDim));
        }

        Prune(past + tokens, past + tokens);
        return tensor(outputs).reshape(query.shape).to(query.device).MoveToOuterDisposeScope();
    }

    public override void Truncate(int length) => throw new NotSupportedException();

    public override void Clear() => throw new NotSupportedException();

    protected override void Dispose(bool disposing)
    {
    }

    private static List<float[]>[] NewHeads(int count) => [.. Enumerable.Range(0, count).Select(_ => new List<float[]>())];

    private static void Add(List<float[]>[] heads, Tensor source, int tokens)
    {
        float[] all = source.cpu().contiguous().data<float>().ToArray();
        int headDim = all.Length / heads.Length / tokens;
        for (int i = 0; i < heads.Length * tokens; i++)
        {
            heads[i / tokens].Add(all[(i * headDim)..((i + 1) * headDim)]);
        }
    }

    // What is due at a length, as far as it is there.
    private void Prune(int length, int present)
    {
        int due = Math.Min(Math.Max(0, length - options.LocalWindow) / options.GroupSize * options.GroupSize, present);
        for (; _pruned < due; _pruned++)
        {
            for (int head = 0; head < NumKvHeads; head++)
            {
                Prune(_keys[head][_pruned], options.KeysKept(HeadDim));
                Prune(_values[head][_pruned], options.ValuesKept(HeadDim));
            }
        }
    }

    private static void Prune(float[] row, int kept)
    {
        foreach (int channel in Enumerable.Range(0, row.Length).OrderByDescending(c => Math.Abs(row[c])).ThenBy(c => c).Skip(kept))
        {
            row[channel] = 0;
        }
    }

    // One query over the tokens that it sees, in double precision.
    private static void Attend(ReadOnlySpan<float> query, List<float[]> keys, List<float[]> values, double scale, Span<float> output)
    {
        int visible = keys.Count;
        double[] weights = new double[visible];
        for (int token = 0; token < visible; token++)
        {
            for (int c = 0; c < query.Length; c++)
            {
                weights[token] += scale * query[c] * keys[token][c];
            }
        }

        double largest = weights.Max();
        for (int token = 0; token < visible; token++)
        {
            weights[token] = Math.Exp(weights[token] - largest);
        }

        double sum = weights.Sum();
        for (int c = 0; c < output.Length; c++)
        {
            double value = 0;
            for (int token = 0; token < visible; token++)
            {
                value += weights[token] * values[token][c];
            }

            output[c] = (float)(value / sum);
        }
    }
}
