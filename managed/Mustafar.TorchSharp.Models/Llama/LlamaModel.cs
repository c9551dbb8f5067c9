using System.Diagnostics.CodeAnalysis;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Models.Llama;

/// <summary>The decoder: tokens to hidden states.</summary>
public sealed class LlamaModel : nn.Module<Tensor, ModelCache, Tensor>
{
    private readonly RotaryEmbedding _rotary;
#pragma warning disable IDE1006 // the fields' names are the keys of the state dictionary
    private readonly TokenEmbedding embed_tokens;
    private readonly ModuleList<LlamaDecoderLayer> layers;
    private readonly RmsNorm norm;
#pragma warning restore IDE1006

    /// <summary>Makes a decoder whose weights are not initialised.</summary>
    /// <param name="config">The model.</param>
    /// <param name="dtype">Type of the weights.</param>
    /// <param name="device">Device of the weights.</param>
    // RegisterComponents finds the children by reflection; compiled ahead of time, an application has only the fields that are named.
    [DynamicDependency(DynamicallyAccessedMemberTypes.NonPublicFields, typeof(LlamaModel))]
    public LlamaModel(LlamaConfig config, ScalarType dtype, Device device)
        : base(nameof(LlamaModel))
    {
        _rotary = new RotaryEmbedding(config.Rotary);
        embed_tokens = new TokenEmbedding(config.VocabSize, config.HiddenSize, dtype, device);
        layers = new ModuleList<LlamaDecoderLayer>(
            Enumerable.Range(0, config.NumLayers).Select(_ => new LlamaDecoderLayer(config, _rotary, dtype, device)).ToArray());
        norm = new RmsNorm(config.HiddenSize, config.RmsNormEps, dtype, device);
        RegisterComponents();
    }

    /// <summary>The token vectors, for a head that is tied to them.</summary>
    internal TokenEmbedding Embedding => embed_tokens;

    /// <summary>Hidden states of n new tokens.</summary>
    /// <param name="ids">Int64 [batch, n].</param>
    /// <param name="cache">The sequences, which the tokens join: in all layers or, if anything fails, in none.</param>
    /// <returns>[batch, n, hidden_size].</returns>
    public override Tensor forward(Tensor ids, ModelCache cache) => forward(ids, cache, default);

    /// <summary>Hidden states of n new tokens, with a separate number for each sequence.</summary>
    /// <param name="ids">Int64 [batch, n].</param>
    /// <param name="cache">The sequences, which the tokens join: in all layers or, if anything fails, in none.</param>
    /// <param name="counts">How many of the n tokens belong to each sequence; all if empty.</param>
    /// <param name="cancellationToken">Cancels before the next layer; no token has been added then.</param>
    /// <returns>[batch, n, hidden_size].</returns>
    public Tensor forward(Tensor ids, ModelCache cache, ReadOnlySpan<int> counts, CancellationToken cancellationToken = default)
    {
        Check(ids, cache);
        return HiddenOf(ids, cache, .., counts, cancellationToken);
    }

    /// <summary>Checks ids for all sequences of a cache.</summary>
    /// <exception cref="ArgumentException">They don't fit.</exception>
    internal void Check(Tensor ids, ModelCache cache)
    {
        ArgumentNullException.ThrowIfNull(ids);
        ArgumentNullException.ThrowIfNull(cache);
        if (ids.dtype != ScalarType.Int64)
        {
            throw new ArgumentException($"Expected token ids in Int64, but got {ids.dtype}.", nameof(ids));
        }

        if (ids.dim() != 2 || ids.size(0) != cache.BatchSize || ids.size(1) == 0)
        {
            throw new ArgumentException(
                $"Expected token ids [{cache.BatchSize}, tokens], at least one for each of the cache's sequences, but got [{string.Join(", ", ids.shape)}].",
                nameof(ids));
        }

        if (cache.Cache.NumLayers != layers.Count)
        {
            throw new ArgumentException($"Expected a cache of {layers.Count} layers, but got {cache.Cache.NumLayers}.", nameof(cache));
        }
    }

    /// <summary>Hidden states of n new tokens of some of a cache's sequences.</summary>
    /// <param name="ids">Int64 [rows, n].</param>
    /// <param name="cache">The sequences.</param>
    /// <param name="rows">Which of them.</param>
    /// <param name="counts">How many of the n tokens belong to each; all if empty.</param>
    /// <param name="cancellationToken">Cancels before the next layer; no token has been added then.</param>
    /// <returns>[rows, n, hidden_size].</returns>
    internal Tensor HiddenOf(Tensor ids, ModelCache cache, Range rows, ReadOnlySpan<int> counts, CancellationToken cancellationToken)
    {
        using DisposeScope scope = NewDisposeScope();
        int[] sequences = [.. cache.Sequences];
        using CacheStep step = cache.Cache.BeginStep(sequences.AsSpan(rows), checked((int)ids.size(1)), counts);
        Tensor hidden = norm.call(Apply(ids, step, cancellationToken));
        step.Commit();
        return hidden.MoveToOuterDisposeScope();
    }

    /// <summary>Norm of the last layer's output.</summary>
    internal RmsNorm Norm => norm;

    /// <summary>Embeds tokens and applies all layers in a step; the result is not normalised yet.</summary>
    /// <param name="ids">Int64 [batch, n] of the step's sequences, in its order.</param>
    /// <param name="step">The step.</param>
    /// <param name="cancellationToken">Cancels before the next layer.</param>
    /// <returns>[batch, n, hidden_size].</returns>
    internal Tensor Apply(Tensor ids, CacheStep step, CancellationToken cancellationToken = default)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor hidden = embed_tokens.call(ids);
        for (int i = 0; i < layers.Count; i++)
        {
            cancellationToken.ThrowIfCancellationRequested();
            layers[i].Apply(hidden, step, i);
        }

        return hidden.MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _rotary.Dispose();
        }

        base.Dispose(disposing);
    }
}
