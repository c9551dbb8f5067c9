using System.Diagnostics;
using Mustafar.Examples.Llama.Model;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Generation;

/// <summary>Continues a text token by token, and measures how long the model takes for it.</summary>
public sealed class TokenGenerator
{
    private readonly LlamaForCausalLM _model;
    private readonly ModelCache _cache;
    private readonly Stopwatch _prefill = new();
    private readonly Stopwatch _decode = new();

    /// <summary>Makes a generator of one sequence.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">Its caches, of batch size 1; what they hold is the text so far.</param>
    /// <exception cref="ArgumentException">The caches are of another batch size.</exception>
    public TokenGenerator(LlamaForCausalLM model, ModelCache cache)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(cache);
        if (cache.BatchSize != 1)
        {
            throw new ArgumentException($"Expected caches of one sequence, but got {cache.BatchSize}.", nameof(cache));
        }

        _model = model;
        _cache = cache;
    }

    /// <summary>Time that the model took for prompts.</summary>
    public TimeSpan PrefillTime => _prefill.Elapsed;

    /// <summary>Time that the model took for steps of one token.</summary>
    public TimeSpan DecodeTime => _decode.Elapsed;

    /// <summary>Number of steps of one token.</summary>
    public int DecodeSteps { get; private set; }

    /// <summary>Steps per second of <see cref="DecodeTime"/>; 0 before the first.</summary>
    public double TokensPerSecond => DecodeSteps == 0 ? 0 : DecodeSteps / DecodeTime.TotalSeconds;

    /// <summary>Continues a text until a stop token, the number of tokens asked for, or the model's longest text.</summary>
    /// <param name="prompt">Ids to add to the text first, at least one.</param>
    /// <param name="sampler">Chooses tokens.</param>
    /// <param name="maxTokens">Tokens to generate at most.</param>
    /// <param name="stopTokens">Tokens that end the text; the one that does is generated, but not cached.</param>
    /// <param name="cancellationToken">Stops before the next step.</param>
    /// <returns>The tokens, each as soon as it is known.</returns>
    /// <exception cref="ArgumentException">The prompt is empty, has ids out of the vocabulary, or doesn't fit into the model.</exception>
    public IEnumerable<int> Generate(
        IReadOnlyList<int> prompt,
        Sampler sampler,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(sampler);
        ArgumentNullException.ThrowIfNull(stopTokens);
        ArgumentOutOfRangeException.ThrowIfNegative(maxTokens);
        TokenIds.Check(prompt, _model.Config, alreadyCached: _cache.Length);
        return Steps(prompt, sampler, maxTokens, stopTokens, cancellationToken);
    }

    private IEnumerable<int> Steps(
        IReadOnlyList<int> prompt, Sampler sampler, int maxTokens, IReadOnlySet<int> stopTokens, CancellationToken cancellationToken)
    {
        float[] logits = new float[_model.Config.VocabSize];
        for (int i = 0; i < maxTokens; i++)
        {
            cancellationToken.ThrowIfCancellationRequested();
            if (i == 0)
            {
                Step(prompt, logits, _prefill);
            }

            int token = sampler.Next(logits);
            yield return token;
            bool isLast = i + 1 == maxTokens || stopTokens.Contains(token) || _cache.Length == _model.Config.MaxPositions;
            if (isLast)
            {
                yield break;
            }

            cancellationToken.ThrowIfCancellationRequested();
            Step([token], logits, _decode);
            DecodeSteps++;
        }
    }

    private void Step(IReadOnlyList<int> ids, float[] logits, Stopwatch stopwatch)
    {
        stopwatch.Start();
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        Tensor row = _model.NextTokenLogits(TokenIds.ToTensor(ids, _model.Device), _cache);
        row.to(ScalarType.Float32).cpu().data<float>().CopyTo(logits);
        stopwatch.Stop();
    }
}
