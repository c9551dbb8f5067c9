using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Models.Generation;

/// <summary>Runs steps of one token for sequences of a cache, from the last token of each to the scores of the next or, with sampling, to
/// the next token itself. On CUDA a step is one graph (<see cref="DecodeGraph"/>).</summary>
/// <remarks>Only one thread at a time may use it, for a fixed number of sequences.</remarks>
public sealed class DecodeSteps : IDisposable
{
    private readonly LlamaForCausalLM _model;
    private readonly DecodeGraph _graph;
    private readonly SamplingState? _sampling;
    private readonly Tensor? _unused;

    /// <summary>Makes a runner of steps.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">The cache of its sequences.</param>
    /// <param name="batchSize">Number of sequences in a step.</param>
    /// <param name="sampling">State for sampling the next tokens of that many sequences; null if none are chosen.</param>
    /// <param name="logProbabilities">Whether to compute the logarithms of the chosen tokens' probabilities.</param>
    /// <param name="capture">Whether steps may become graphs.</param>
    public DecodeSteps(
        LlamaForCausalLM model, ModelKeyValueCache cache, int batchSize, SamplingState? sampling = null, bool logProbabilities = false, bool capture = true)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(cache);
        using IDisposable mode = inference_mode(false);
        using IDisposable noGrad = no_grad();
        (_model, _sampling) = (model, sampling);
        Tokens = zeros([batchSize], dtype: ScalarType.Int64, device: model.Device).DetachFromDisposeScope();
        Logits = empty([batchSize, model.Config.VocabSize], dtype: model.DType, device: model.Device).DetachFromDisposeScope();
        LogProbabilities = sampling is null || !logProbabilities ? null : zeros([batchSize], device: model.Device).DetachFromDisposeScope();
        _unused = model.Config.UnusedTokenIds.Count == 0
            ? null
            : tensor(model.Config.UnusedTokenIds.Select(id => (long)id).ToArray(), device: model.Device).DetachFromDisposeScope();
        _graph = new DecodeGraph(cache, Step, capture, model);
    }

    /// <summary>Int64 [batch]: each sequence's last token before a step and, if tokens are chosen, its next one afterwards.</summary>
    public Tensor Tokens { get; }

    /// <summary>Scores of the next tokens after a step, [batch, vocab_size] in the type of the weights.</summary>
    public Tensor Logits { get; }

    /// <summary>Float32 [batch]: logarithms of the chosen tokens' probabilities, if they are computed.</summary>
    public Tensor? LogProbabilities { get; }

    /// <summary>Runs the steps.</summary>
    public DecodeGraph Graph => _graph;

    /// <summary>Adds <see cref="Tokens"/> to sequences.</summary>
    /// <param name="sequences">Their numbers in the cache.</param>
    /// <param name="counts">For each sequence 1, or 0 for one that is skipped; all 1 if empty.</param>
    /// <exception cref="MovedWeightsException">The model's weights have moved since steps were captured.</exception>
    public void Run(ReadOnlySpan<int> sequences, ReadOnlySpan<int> counts = default)
    {
        using IDisposable noGrad = no_grad();
        _graph.Run(sequences, counts);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _graph.Dispose();
        Tokens.Dispose();
        Logits.Dispose();
        LogProbabilities?.Dispose();
        _unused?.Dispose();
    }

    private void Step(CacheStep step)
    {
        _model.Decode(Tokens, step, Logits);
        if (_unused is not null)
        {
            Logits.index_fill_(1, _unused, Scalars.NegativeInfinity);
        }

        if (_sampling is not null)
        {
            MustafarOps.Sample(Logits, _sampling, tokens: Tokens, logProbabilities: LogProbabilities);
        }
    }
}
