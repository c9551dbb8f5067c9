using Mustafar;
using TorchSharp;
using static TorchSharp.torch;

// Compiled ahead of time: an attention layer over a compressed cache, a file of it, and the steps of a model's cache.
using IDisposable noGrad = no_grad();
MustafarAttentionOptions options = new() { HiddenSize = 256, NumHeads = 4, NumKvHeads = 2, HeadDim = 64 };
using RotaryEmbedding rotary = new(new RotaryOptions { HeadDim = 64, Theta = 10000 });
using MustafarAttention attention = new(options, rotary);
using MustafarCache cache = new(batchSize: 1, options.KeyValueShape, ScalarType.Float32, CPU, MustafarPresets.HalfInFourBits);
attention.forward(randn(1, 300, 256), cache);
attention.forward(randn(1, 1, 256), cache);

string file = Path.GetTempFileName();
cache.Save(file, MustafarCacheFile.FingerprintOf(attention));
using MustafarCache restored = new(batchSize: 1, cache.KeyValueShape, ScalarType.Float32, CPU, cache.Options);
restored.Load(file, MustafarCacheFile.FingerprintOf(attention));
File.Delete(file);

using MustafarModelCache model = new(numLayers: 2, options.KeyValueShape, ScalarType.Float32);
int sequence = model.AddSequence();
using (CacheStep step = model.BeginStep([sequence], tokens: 100))
{
    for (int layer = 0; layer < model.NumLayers; layer++)
    {
        attention.forward(randn(1, 100, 256), step, layer);
    }

    step.Commit();
}

Console.WriteLine($"{restored.Length} and {model.LengthOf(sequence)} tokens, {attention.state_dict().Count} weights");
