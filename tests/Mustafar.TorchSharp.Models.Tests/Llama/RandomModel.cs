using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>Small models of random weights.</summary>
internal static class RandomModel
{
    /// <summary>Makes a model in float32 with two layers, grouped queries and so few tokens that all continuations can be tried.</summary>
    /// <param name="vocabSize">Tokens that it knows.</param>
    /// <param name="seed">Start of the random numbers.</param>
    /// <param name="maxPositions">Its longest text.</param>
    public static LlamaForCausalLM New(int vocabSize, int seed, int maxPositions = 512)
    {
        LlamaConfig config = new()
        {
            VocabSize = vocabSize,
            HiddenSize = 32,
            IntermediateSize = 48,
            NumLayers = 2,
            NumHeads = 2,
            NumKvHeads = 1,
            HeadDim = 64,
            RmsNormEps = 1e-5,
            Rotary = new RotaryOptions { HeadDim = 64, Theta = 10000 },
            MaxPositions = maxPositions,
        };
        return New(config, seed, deviation: 0.25); // large enough for probabilities that differ clearly
    }

    /// <summary>Makes a model of normally distributed weights, with norms of one.</summary>
    /// <param name="config">Its sizes.</param>
    /// <param name="seed">Start of the random numbers.</param>
    /// <param name="deviation">Standard deviation of the weights.</param>
    /// <param name="dtype">Their data type.</param>
    /// <param name="device">Where they are, the CPU by default.</param>
    public static LlamaForCausalLM New(
        LlamaConfig config, int seed, double deviation, ScalarType dtype = ScalarType.Float32, Device? device = null)
    {
        manual_seed(seed);
        LlamaForCausalLM model = new(config, dtype, device);
        using IDisposable noGrad = no_grad();
        foreach (TorchSharp.Modules.Parameter parameter in model.parameters())
        {
            _ = parameter.dim() == 1 ? parameter.fill_(1) : parameter.normal_(0, deviation);
        }

        return model;
    }

    /// <summary>Ids of a text.</summary>
    public static int[] Prompt(LlamaForCausalLM model, int length, int seed = 0)
    {
        Random random = new(seed);
        return [.. Enumerable.Range(0, length).Select(_ => random.Next(model.Config.VocabSize))];
    }

    /// <summary>Log-probabilities of the next token, the slow way: a whole forward pass over empty caches.</summary>
    /// <param name="model">The model.</param>
    /// <param name="prompt">Tokens that are taken at once.</param>
    /// <param name="continuation">Tokens after it, which are taken at once too, or one by one if the caches prune.</param>
    /// <param name="pruning">How the caches prune; they are dense if null.</param>
    public static double[] LogProbabilities(LlamaForCausalLM model, int[] prompt, int[] continuation, MustafarOptions? pruning = null)
    {
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = pruning is null
            ? ModelCache.Dense(model)
            : LayerCaches.Of(Enumerable.Range(0, model.Config.NumLayers).Select(_ =>
                new PrunedDenseCache(model.Config.KeyValueShape, pruning)));
        int[][] steps = pruning is null ? [[.. prompt, .. continuation]] : [prompt, .. continuation.Select(token => new[] { token })];
        Tensor logits = zeros(0);
        foreach (int[] step in steps)
        {
            logits = model.forward(tensor(step.Select(id => (long)id).ToArray()).reshape(1, -1), cache)[0, step.Length - 1];
        }

        return logits.to(ScalarType.Float64).log_softmax(0).data<double>().ToArray();
    }
}
