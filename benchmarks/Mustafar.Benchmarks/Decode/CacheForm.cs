using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Benchmarks.Decode;

/// <summary>A kind of cache to measure.</summary>
/// <param name="Name">Its name in the results.</param>
/// <param name="Options">How it is pruned; dense if null.</param>
internal sealed record CacheForm(string Name, MustafarOptions? Options)
{
    /// <summary>Bytes of one sequence.</summary>
    internal long BytesOf(LlamaForCausalLM model, int context)
    {
        using ModelKeyValueCache one = Make(model, 1, context);
        return one.Usage.ReservedBytes;
    }

    /// <summary>Sequences with room for the whole context, filled except for some tokens.</summary>
    internal ModelCache Filled(LlamaForCausalLM model, int batch, int context, int missing)
    {
        ModelCache filled = new(Make(model, batch, context), batch);
        try
        {
            using IDisposable mode = inference_mode();
            ModelKeyValueCache cache = filled.Cache;
            foreach (int sequence in filled.Sequences)
            {
                using CacheStep step = cache.BeginStep([sequence], context - missing);
                for (int layer = 0; layer < cache.NumLayers; layer++)
                {
                    using var scope = NewDisposeScope();
                    Tensor Random() => randn([1, cache.NumKvHeads, context - missing, cache.HeadDim], dtype: cache.DType, device: cache.Device);
                    step.Attend(layer, Random(), Random(), Random());
                }

                step.Commit();
            }

            return filled;
        }
        catch
        {
            filled.Dispose();
            throw;
        }
    }

    /// <summary>An empty cache with room for the whole context of each sequence.</summary>
    internal ModelKeyValueCache Make(LlamaForCausalLM model, int batch, int context)
    {
        LlamaConfig config = model.Config;
        CacheLimits limits = new() { MaxSequences = batch, MaxLength = context };
        return Options is null
            ? new DenseModelCache(config.NumLayers, config.KeyValueShape, model.DType, model.Device, limits: limits)
            : new MustafarModelCache(
                config.NumLayers, config.KeyValueShape, model.DType, model.Device, Options,
                limits with { BudgetTokens = batch * (long)context });
    }
}
