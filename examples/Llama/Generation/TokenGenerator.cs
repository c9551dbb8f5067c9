using System.Diagnostics;
using Mustafar.Examples.Llama.Model;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Generation;

/// <summary>A token of one of several texts that are continued side by side.</summary>
/// <param name="Sequence">Which text.</param>
/// <param name="Token">Its next token.</param>
public readonly record struct SequenceToken(int Sequence, int Token);

/// <summary>Continues texts token by token, and measures how long the model takes for it.</summary>
public sealed class TokenGenerator
{
    private readonly LlamaForCausalLM _model;
    private readonly ModelCache _cache;
    private readonly Stopwatch _prefill = new();
    private readonly Stopwatch _decode = new();

    /// <summary>Makes a generator.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">Its caches; what they hold is the texts so far.</param>
    public TokenGenerator(LlamaForCausalLM model, ModelCache cache)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(cache);
        _model = model;
        _cache = cache;
    }

    /// <summary>Time that the model took for prompts.</summary>
    public TimeSpan PrefillTime => _prefill.Elapsed;

    /// <summary>Time that the model took for steps of one token.</summary>
    public TimeSpan DecodeTime => _decode.Elapsed;

    /// <summary>Tokens that the model took in steps of one token, of all texts.</summary>
    public int DecodedTokens { get; private set; }

    /// <summary><see cref="DecodedTokens"/> per second of <see cref="DecodeTime"/>; 0 before the first.</summary>
    public double TokensPerSecond => DecodedTokens == 0 ? 0 : DecodedTokens / DecodeTime.TotalSeconds;

    /// <summary>Continues a text until a stop token, the number of tokens asked for, or the model's longest text.</summary>
    /// <param name="prompt">Ids to add to the text first, at least one.</param>
    /// <param name="sampler">Chooses tokens.</param>
    /// <param name="maxTokens">Tokens to generate at most.</param>
    /// <param name="stopTokens">Tokens that end the text; the one that does is generated, but not cached.</param>
    /// <param name="cancellationToken">Stops before the next step.</param>
    /// <returns>The tokens, each as soon as it is known.</returns>
    /// <exception cref="ArgumentException">The prompt is empty, has ids out of the vocabulary, or doesn't fit into the model; or the
    /// caches are not of one sequence.</exception>
    public IEnumerable<int> Generate(
        IReadOnlyList<int> prompt,
        Sampler sampler,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        CancellationToken cancellationToken = default) =>
        Generate([prompt], [sampler], maxTokens, stopTokens, cancellationToken).Select(item => item.Token);

    /// <summary>
    /// Continues several texts side by side, each until a stop token, the number of tokens asked for, or the model's longest text. The
    /// prompts may have different lengths; no padding is cached.
    /// </summary>
    /// <param name="prompts">For each sequence of the caches, ids to add to its text first, at least one.</param>
    /// <param name="samplers">For each sequence, what chooses its tokens; one that draws must not be shared.</param>
    /// <param name="maxTokens">Tokens to generate at most for each text.</param>
    /// <param name="stopTokens">Tokens that end a text; the one that does is generated, but not cached.</param>
    /// <param name="cancellationToken">Stops before the next step.</param>
    /// <returns>The tokens, those of one step in order of the sequences.</returns>
    /// <exception cref="ArgumentException">A prompt is empty, has ids out of the vocabulary, or doesn't fit into the model; or there are
    /// not as many prompts and samplers as the caches have sequences.</exception>
    public IEnumerable<SequenceToken> Generate(
        IReadOnlyList<IReadOnlyList<int>> prompts,
        IReadOnlyList<Sampler> samplers,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(prompts);
        ArgumentNullException.ThrowIfNull(samplers);
        ArgumentNullException.ThrowIfNull(stopTokens);
        ArgumentOutOfRangeException.ThrowIfNegative(maxTokens);
        if (prompts.Count != _cache.BatchSize)
        {
            throw new ArgumentException(
                $"Expected a prompt for each of the caches' {_cache.BatchSize} sequences, but got {prompts.Count}.", nameof(prompts));
        }

        if (samplers.Count != prompts.Count || samplers.Contains(null))
        {
            throw new ArgumentException(
                $"Expected a sampler for each of {prompts.Count} sequences, but got {samplers.Count(sampler => sampler is not null)}.",
                nameof(samplers));
        }

        for (int i = 0; i < prompts.Count; i++)
        {
            TokenIds.Check(prompts[i], _model.Config, alreadyCached: _cache.Lengths[i]);
        }

        return Steps(prompts, samplers, maxTokens, stopTokens, cancellationToken);
    }

    private IEnumerable<SequenceToken> Steps(
        IReadOnlyList<IReadOnlyList<int>> prompts,
        IReadOnlyList<Sampler> samplers,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        CancellationToken cancellationToken)
    {
        int batch = prompts.Count;
        int vocabSize = _model.Config.VocabSize;
        float[] logits = new float[batch * vocabSize];
        int[] next = new int[batch];
        int[] counts = new int[batch];
        Array.Fill(counts, 1);
        for (int step = 0; step < maxTokens && counts.Contains(1); step++)
        {
            cancellationToken.ThrowIfCancellationRequested();
            if (step == 0)
            {
                Prefill(prompts, logits);
            }
            else
            {
                Decode(next, counts, logits);
            }

            for (int i = 0; i < batch; i++)
            {
                if (counts[i] == 1)
                {
                    next[i] = samplers[i].Next(logits.AsSpan(i * vocabSize, vocabSize));
                    counts[i] = stopTokens.Contains(next[i]) || _cache.Lengths[i] == _model.Config.MaxPositions ? 0 : 1;
                    yield return new SequenceToken(i, next[i]);
                }
            }
        }
    }

    private void Prefill(IReadOnlyList<IReadOnlyList<int>> prompts, float[] logits)
    {
        _prefill.Start();
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        int[] counts = [.. prompts.Select(prompt => prompt.Count)];
        bool padded = counts.Any(count => count != counts[0]);
        Read(_model.NextTokenLogits(TokenIds.ToPaddedTensor(prompts, _model.Device), _cache, padded ? counts : default), logits);
        _prefill.Stop();
    }

    private void Decode(int[] tokens, int[] counts, float[] logits)
    {
        _decode.Start();
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        Tensor ids = TokenIds.ToTensor(tokens, _model.Device).reshape(-1, 1);
        bool someEnded = counts.Contains(0);
        Read(_model.NextTokenLogits(ids, _cache, someEnded ? counts : default), logits);
        _decode.Stop();
        DecodedTokens += counts.Sum();
    }

    private static void Read(Tensor source, float[] logits) =>
        source.to(ScalarType.Float32).cpu().contiguous().data<float>().CopyTo(logits);
}
