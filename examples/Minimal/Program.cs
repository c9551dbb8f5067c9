// The cache in a model of your own: one attention layer with random weights, whose keys and values are pruned and compressed.
using Mustafar;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

const int Heads = 8, KvHeads = 2, HeadDim = 64, Hidden = Heads * HeadDim, Vocabulary = 1000;
using IDisposable noGrad = no_grad();
random.manual_seed(1);
using Embedding embedding = nn.Embedding(Vocabulary, Hidden);
using Linear query = nn.Linear(Hidden, Heads * HeadDim), key = nn.Linear(Hidden, KvHeads * HeadDim), value = nn.Linear(Hidden, KvHeads * HeadDim);
using Linear output = nn.Linear(Hidden, Hidden), logits = nn.Linear(Hidden, Vocabulary);

// One cache per layer, for one sequence or a batch.
MustafarOptions options = new() { KeySparsity = 0.5, ValueSparsity = 0.7 };
KeyValueShape shape = new() { NumKvHeads = KvHeads, HeadDim = HeadDim };
using MustafarCache cache = new(batchSize: 1, shape, ScalarType.Float32, CPU, options);

// A prompt of 2000 tokens, then one chosen token at a time.
Tensor tokens = randint(0, Vocabulary, [1, 2000], dtype: ScalarType.Int64);
for (int step = 0; step < 100; step++)
{
    using DisposeScope scope = NewDisposeScope();
    Tensor hidden = embedding.forward(tokens);

    // A model with rotary positions rotates queries and keys first, starting at position cache.Length.
    Tensor attended = cache.Forward(
        Split(query.forward(hidden), Heads), Split(key.forward(hidden), KvHeads), Split(value.forward(hidden), KvHeads));

    hidden += output.forward(attended.transpose(1, 2).flatten(2));
    using Tensor last = tokens;
    tokens = logits.forward(hidden.narrow(1, -1, 1)).argmax(-1).MoveToOuterDisposeScope();
}

Console.WriteLine($"{cache.Length} tokens, {cache.Memory.TotalBytes} bytes: {100 * cache.Memory.RatioToDense:F0} % of a dense cache.");

// [batch, n, heads · head_dim] as [batch, heads, n, head_dim].
static Tensor Split(Tensor tensor, int heads) => tensor.unflatten(2, [heads, HeadDim]).transpose(1, 2);
