using Mustafar.Examples.Llama.Model;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Generation;

/// <summary>Chooses the tokens of texts that are continued side by side, where the model's scores are: only tokens leave the device.</summary>
internal sealed class BatchSampler : IDisposable
{
    private readonly IReadOnlyList<Sampler> _samplers;
    private readonly SamplingState _state;
    private readonly float[]? _logProbabilities;

    /// <summary>Goes on where samplers are.</summary>
    /// <param name="samplers">For each text, how its tokens are chosen. Told which were.</param>
    /// <param name="model">The model whose scores there will be.</param>
    /// <param name="logProbabilities">Receives the logarithms of the chosen tokens' probabilities; not wanted if null.</param>
    public BatchSampler(IReadOnlyList<Sampler> samplers, LlamaForCausalLM model, float[]? logProbabilities)
    {
        _samplers = samplers;
        _logProbabilities = logProbabilities;
        _state = new SamplingState(samplers.Count, model.Config.VocabSize, model.Device, samplers.Any(sampler => sampler.HasPenalties));
        for (int i = 0; i < samplers.Count; i++)
        {
            ReadOnlySpan<int> chosen = samplers[i].Chosen;
            _state.Restart(i, samplers[i].Parameters, chosen: chosen, step: chosen.Length);
        }
    }

    /// <summary>Chooses a token of each text.</summary>
    /// <param name="logits">Scores [batch, vocab_size].</param>
    /// <param name="counts">For each text 1, or 0 if it has ended: its scores and its token are meaningless.</param>
    /// <param name="tokens">Overwritten with the tokens.</param>
    /// <exception cref="ArgumentException">Scores of a text include NaN, or have no finite largest one.</exception>
    public void Next(Tensor logits, int[] counts, int[] tokens)
    {
        using IDisposable noGrad = no_grad();
        using TorchSharp.DisposeScope scope = NewDisposeScope();
        Tensor? logs = _logProbabilities is null ? null : empty(tokens.Length, device: _state.Device);
        Tensor chosen = MustafarOps.Sample(logits, _state, logProbabilities: logs).cpu();
        logs?.cpu().data<float>().CopyTo(_logProbabilities);
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
                    $"Expected scores without NaN whose largest is finite, but those of text {i} are not: the model gives no numbers.",
                    nameof(logits));
            }

            _samplers[i].Add(tokens[i]);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _state.Dispose();
}
