using System.Diagnostics;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Models.Generation;

/// <summary>A token of one of several texts that are continued in one batch.</summary>
/// <param name="Sequence">Which text.</param>
/// <param name="Token">Its next token.</param>
public readonly record struct SequenceToken(int Sequence, int Token);

/// <summary>Base of all ways to continue texts: steps of a model over a cache, and the time that they take.</summary>
public abstract class TextGenerator
{
    private readonly Stopwatch _prefill = new();
    private readonly Stopwatch _decode = new();

    private protected TextGenerator(LlamaForCausalLM model, ModelCache cache)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(cache);
        Model = model;
        Cache = cache;
    }

    /// <summary>Time for prompts, up to the choice of the first token after them.</summary>
    public TimeSpan PrefillTime => _prefill.Elapsed;

    /// <summary>Time for steps of one token, including the choice of tokens, and for forks.</summary>
    public TimeSpan DecodeTime => _decode.Elapsed;

    /// <summary>Number of tokens that the model read in steps of one token, over all texts.</summary>
    public int DecodedTokens { get; private set; }

    /// <summary><see cref="DecodedTokens"/> per second of <see cref="DecodeTime"/>; 0 before the first.</summary>
    public double TokensPerSecond => DecodedTokens == 0 ? 0 : DecodedTokens / DecodeTime.TotalSeconds;

    private protected LlamaForCausalLM Model { get; }

    private protected ModelCache Cache { get; }

    /// <summary>Checks that <see cref="Cache"/> holds one text.</summary>
    /// <exception cref="ArgumentException">It is not.</exception>
    private protected void RequireOneSequence()
    {
        if (Cache.BatchSize != 1)
        {
            throw new ArgumentException($"Expected a cache of one sequence, but got {Cache.BatchSize}.", "cache");
        }
    }

    /// <summary>Adds prompts to the texts in <see cref="Cache"/>.</summary>
    /// <param name="prompts">Ids for each sequence, which may differ in number.</param>
    /// <param name="cancellationToken">Cancels before the next layer of the model; nothing of the prompts is cached then.</param>
    /// <returns>The scores after each prompt, [batch, vocab_size]. The caller disposes them.</returns>
    private protected Tensor Prefill(IReadOnlyList<IReadOnlyList<int>> prompts, CancellationToken cancellationToken)
    {
        TimeSpan before = _prefill.Elapsed;
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        int[] counts = [.. prompts.Select(prompt => prompt.Count)];
        bool padded = counts.Any(count => count != counts[0]);
        Tensor logits;
        using (Timing timing = new(_prefill))
        {
            Tensor ids = TokenIds.ToPaddedTensor(prompts, Model.Device);
            logits = Model.NextTokenLogits(ids, Cache, padded ? counts : default, cancellationToken);
            TokenIds.ExcludeUnused(logits, Model.Config);
        }

        GenerationMetrics.AddPrefill(counts.Sum(), _prefill.Elapsed - before);
        return logits.DetachFromDisposeScope();
    }

    /// <summary>Like <see cref="Prefill"/>, with the scores copied from the model's device.</summary>
    /// <param name="prompts">Ids for each sequence, which may differ in number.</param>
    /// <param name="cancellationToken">As there.</param>
    /// <returns>batch · vocab_size numbers.</returns>
    private protected float[] PrefillScores(IReadOnlyList<IReadOnlyList<int>> prompts, CancellationToken cancellationToken)
    {
        using Tensor logits = Prefill(prompts, cancellationToken);
        float[] scores = new float[logits.numel()];
        Read(logits, scores, _prefill);
        return scores;
    }

    /// <summary>Adds a token to texts.</summary>
    /// <param name="steps">Runs steps of that many texts.</param>
    /// <param name="cache">The texts so far.</param>
    /// <param name="tokens">For each sequence its token.</param>
    /// <param name="scores">Overwritten with the scores after each token, batch · vocab_size.</param>
    private protected void DecodeScores(DecodeSteps steps, ModelCache cache, int[] tokens, Span<float> scores)
    {
        TimeSpan before = _decode.Elapsed;
        using (Timing timing = new(_decode))
        using (DisposeScope scope = NewDisposeScope())
        {
            steps.Tokens.copy_(TokenIds.ToTensor(tokens, CPU)[0]);
            steps.Run([.. cache.Sequences]);
        }

        DecodedTokens += tokens.Length;
        Read(steps.Logits, scores, _decode);
        GenerationMetrics.AddStep(tokens.Length, _decode.Elapsed - before);
    }

    /// <summary>Adds sequences that continue others.</summary>
    private protected ModelCache Fork(ModelCache cache, int[] parents)
    {
        using Timing timing = new(_decode);
        return cache.Fork(parents);
    }

    /// <summary>Replaces sequences by ones that continue them.</summary>
    private protected void Reorder(ModelCache cache, int[] parents)
    {
        using Timing timing = new(_decode);
        cache.Reorder(parents);
    }

    /// <summary>Continues texts in one batch, each until a stop token, the maximum number of tokens, or the model's context
    /// length.</summary>
    /// <param name="cache">The texts so far.</param>
    /// <param name="logits">The scores after each text, [batch, vocab_size]; disposed.</param>
    /// <param name="samplers">For each text, how to choose its tokens.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate for each text.</param>
    /// <param name="stopTokens">Tokens that end a text.</param>
    /// <param name="logProbabilities">Overwritten at each step with the logarithms of the tokens' probabilities, one per text; not
    /// computed if null.</param>
    /// <param name="cancellationToken">Cancels before the next step.</param>
    /// <returns>The tokens, those of one step in order of the sequences.</returns>
    private protected IEnumerable<SequenceToken> Continue(
        ModelCache cache,
        Tensor logits,
        IReadOnlyList<Sampler> samplers,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        float[]? logProbabilities,
        CancellationToken cancellationToken)
    {
        int batch = cache.BatchSize;
        int[] next = new int[batch];
        int[] counts = new int[batch];
        Array.Fill(counts, 1);
        int[] sequences = [.. cache.Sequences];
        using Tensor scores = logits;
        using BatchSampler choice = new(samplers, Model, logProbabilities);
        using DecodeSteps steps = new(Model, cache.Cache, batch, choice.State, logProbabilities is not null);
        for (int step = 0; step < maxTokens && counts.Contains(1); step++)
        {
            cancellationToken.ThrowIfCancellationRequested();
            TimeSpan before = _decode.Elapsed;
            int tokens = counts.Sum();
            using (Timing timing = new(step == 0 ? _prefill : _decode))
            {
                if (step == 0)
                {
                    MustafarOps.Sample(scores, choice.State, tokens: steps.Tokens, logProbabilities: steps.LogProbabilities);
                }
                else
                {
                    steps.Run(sequences, counts.Contains(0) ? counts : []);
                    DecodedTokens += tokens;
                }

                choice.Read(steps, counts, next);
            }

            if (step > 0)
            {
                GenerationMetrics.AddStep(tokens, _decode.Elapsed - before);
            }

            IReadOnlyList<int> positions = cache.Positions;
            for (int i = 0; i < batch; i++)
            {
                if (counts[i] == 1)
                {
                    counts[i] = stopTokens.Contains(next[i]) || positions[i] == Model.Config.MaxPositions ? 0 : 1;
                    yield return new SequenceToken(i, next[i]);
                }
            }
        }
    }

    // On a device that works asynchronously, this waits for it.
    private static void Read(Tensor logits, Span<float> scores, Stopwatch watch)
    {
        using Timing timing = new(watch);
        using DisposeScope scope = NewDisposeScope();
        logits.to(ScalarType.Float32).cpu().contiguous().data<float>().CopyTo(scores);
    }

    // Runs a stopwatch until it is disposed, even by an exception.
    private readonly struct Timing : IDisposable
    {
        private readonly Stopwatch _watch;

        public Timing(Stopwatch watch)
        {
            _watch = watch;
            watch.Start();
        }

        public void Dispose() => _watch.Stop();
    }
}
