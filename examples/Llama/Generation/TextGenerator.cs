using System.Diagnostics;
using Mustafar.Examples.Llama.Model;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Examples.Llama.Generation;

/// <summary>A token of one of several texts that are continued side by side.</summary>
/// <param name="Sequence">Which text.</param>
/// <param name="Token">Its next token.</param>
public readonly record struct SequenceToken(int Sequence, int Token);

/// <summary>What all ways to continue texts share: steps of a model over caches, and the time that it takes for them.</summary>
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

    /// <summary>Chooses the next token of a text.</summary>
    /// <param name="sequence">Which text.</param>
    /// <param name="logits">A score for each token of the vocabulary.</param>
    private protected delegate int TokenChoice(int sequence, ReadOnlySpan<float> logits);

    /// <summary>Time that the model took for prompts.</summary>
    public TimeSpan PrefillTime => _prefill.Elapsed;

    /// <summary>Time that the model took for steps of one token, and for forks of its caches.</summary>
    public TimeSpan DecodeTime => _decode.Elapsed;

    /// <summary>Tokens that the model took in steps of one token, of all texts.</summary>
    public int DecodedTokens { get; private set; }

    /// <summary><see cref="DecodedTokens"/> per second of <see cref="DecodeTime"/>; 0 before the first.</summary>
    public double TokensPerSecond => DecodedTokens == 0 ? 0 : DecodedTokens / DecodeTime.TotalSeconds;

    private protected LlamaForCausalLM Model { get; }

    private protected ModelCache Cache { get; }

    /// <summary>Checks that <see cref="Cache"/> is of one text.</summary>
    /// <exception cref="ArgumentException">It is not.</exception>
    private protected void RequireOneSequence()
    {
        if (Cache.BatchSize != 1)
        {
            throw new ArgumentException($"Expected caches of one sequence, whose text is continued, but got {Cache.BatchSize}.", "cache");
        }
    }

    /// <summary>Adds prompts to the texts in <see cref="Cache"/>.</summary>
    /// <param name="prompts">Ids for each sequence, which may differ in number.</param>
    /// <param name="cancellationToken">Stops before the next layer of the model, whose caches are good for nothing then.</param>
    /// <returns>The scores after each prompt, batch · vocab_size.</returns>
    private protected float[] Prefill(IReadOnlyList<IReadOnlyList<int>> prompts, CancellationToken cancellationToken)
    {
        _prefill.Start();
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        int[] counts = [.. prompts.Select(prompt => prompt.Count)];
        bool padded = counts.Any(count => count != counts[0]);
        float[] logits = new float[prompts.Count * Model.Config.VocabSize];
        Tensor ids = TokenIds.ToPaddedTensor(prompts, Model.Device);
        Read(Model.NextTokenLogits(ids, Cache, padded ? counts : default, cancellationToken), logits);
        _prefill.Stop();
        return logits;
    }

    /// <summary>Adds a token to texts.</summary>
    /// <param name="cache">The texts so far.</param>
    /// <param name="tokens">For each sequence its token.</param>
    /// <param name="counts">For each sequence 1, or 0 if its text has ended.</param>
    /// <param name="logits">Overwritten with the scores after each token, batch · vocab_size; meaningless for texts that have ended.</param>
    private protected void Decode(ModelCache cache, int[] tokens, int[] counts, Span<float> logits)
    {
        _decode.Start();
        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        Tensor ids = TokenIds.ToTensor(tokens, Model.Device).reshape(-1, 1);
        bool someEnded = counts.Contains(0);
        Read(Model.NextTokenLogits(ids, cache, someEnded ? counts : default), logits);
        _decode.Stop();
        DecodedTokens += counts.Sum();
    }

    /// <summary>Makes caches that continue sequences of others.</summary>
    private protected ModelCache Fork(ModelCache cache, int[] parents)
    {
        _decode.Start();
        ModelCache fork = cache.Fork(parents);
        _decode.Stop();
        return fork;
    }

    /// <summary>Continues texts side by side, each until a stop token, the number of tokens asked for, or the model's longest text.</summary>
    /// <param name="cache">The texts so far.</param>
    /// <param name="logits">The scores after each text, batch · vocab_size; overwritten.</param>
    /// <param name="choose">Chooses tokens.</param>
    /// <param name="maxTokens">Tokens to generate at most for each text.</param>
    /// <param name="stopTokens">Tokens that end a text.</param>
    /// <param name="cancellationToken">Stops before the next step.</param>
    /// <returns>The tokens, those of one step in order of the sequences.</returns>
    private protected IEnumerable<SequenceToken> Continue(
        ModelCache cache,
        float[] logits,
        TokenChoice choose,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        CancellationToken cancellationToken)
    {
        int batch = cache.BatchSize;
        int vocabSize = Model.Config.VocabSize;
        int[] next = new int[batch];
        int[] counts = new int[batch];
        Array.Fill(counts, 1);
        for (int step = 0; step < maxTokens && counts.Contains(1); step++)
        {
            if (step > 0)
            {
                cancellationToken.ThrowIfCancellationRequested();
                Decode(cache, next, counts, logits);
            }

            for (int i = 0; i < batch; i++)
            {
                if (counts[i] == 1)
                {
                    next[i] = choose(i, logits.AsSpan(i * vocabSize, vocabSize));
                    counts[i] = stopTokens.Contains(next[i]) || cache.Lengths[i] == Model.Config.MaxPositions ? 0 : 1;
                    yield return new SequenceToken(i, next[i]);
                }
            }
        }
    }

    private void Read(Tensor source, Span<float> logits) =>
        TokenIds.ExcludeUnused(source, Model.Config).to(ScalarType.Float32).cpu().contiguous().data<float>().CopyTo(logits);
}
