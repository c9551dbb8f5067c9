using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Models.Generation;

/// <summary>Chooses the tokens of a batch of texts on the device of the model's scores, so that only tokens leave the
/// device.</summary>
internal sealed class BatchSampler : IDisposable
{
    private readonly IReadOnlyList<Sampler> _samplers;
    private readonly SamplingState _state;
    private readonly float[]? _logProbabilities;

    /// <summary>Continues from the state of samplers.</summary>
    /// <param name="samplers">For each text, how its tokens are chosen; they record the chosen tokens.</param>
    /// <param name="model">The model that computes the scores.</param>
    /// <param name="logProbabilities">Receives the logarithms of the chosen tokens' probabilities; not computed if null.</param>
    public BatchSampler(IReadOnlyList<Sampler> samplers, LlamaForCausalLM model, float[]? logProbabilities)
    {
        _samplers = samplers;
        _logProbabilities = logProbabilities;
        _state = new SamplingState(samplers.Count, model.Config.VocabSize, model.Device, samplers.Any(sampler => sampler.Parameters.HasPenalties));
        for (int i = 0; i < samplers.Count; i++)
        {
            ReadOnlySpan<int> chosen = samplers[i].Chosen;
            _state.Restart(i, samplers[i].Parameters, samplers[i].Prompt, chosen, step: chosen.Length);
        }
    }

    /// <summary>The state of the texts on the device where their tokens are chosen.</summary>
    public SamplingState State => _state;

    /// <summary>Reads the tokens that were chosen in a step with <see cref="State"/>.</summary>
    /// <param name="steps">The source of the tokens.</param>
    /// <param name="counts">For each text 1, or 0 if it has ended: its token has no meaning.</param>
    /// <param name="tokens">Overwritten with the tokens.</param>
    /// <exception cref="ArgumentException">Scores of a text included NaN, or had no finite maximum.</exception>
    public void Read(DecodeSteps steps, int[] counts, int[] tokens)
    {
        using TorchSharp.DisposeScope scope = NewDisposeScope();
        Tensor chosen = steps.Tokens.cpu();
        steps.LogProbabilities?.cpu().data<float>().CopyTo(_logProbabilities);
        for (int i = 0; i < tokens.Length; i++)
        {
            tokens[i] = (int)chosen.ReadCpuInt64(i);
            if (counts[i] == 0)
            {
                continue;
            }

            if (tokens[i] < 0)
            {
                throw new ArgumentException(
                    $"Expected logits without NaN and with a finite maximum, but those of text {i} are not like that: the model produces no valid numbers.",
                    nameof(steps));
            }

            _samplers[i].Add(tokens[i]);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _state.Dispose();
}
