using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Models.Generation;

/// <summary>Samples several continuations of one text in one batch, and orders them by how likely the model finds them.</summary>
/// <remarks>
/// The prompt is read once. The continuations are decoded on forks of its sequence, which share the compressed pages. Afterwards the given
/// cache ends with the prompt, as if nothing had been continued.
/// </remarks>
public sealed class BestOf : TextGenerator
{
    /// <summary>Makes a generator.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">Its cache, of batch size 1; it holds the text so far.</param>
    /// <exception cref="ArgumentException">The cache has a different batch size.</exception>
    public BestOf(LlamaForCausalLM model, ModelCache cache)
        : base(model, cache)
    {
        RequireOneSequence();
    }

    /// <summary>Continues a text several times, each until a stop token, the maximum number of tokens, or the model's context
    /// length.</summary>
    /// <param name="prompt">Ids to add to the text first, at least one.</param>
    /// <param name="samplers">For each continuation, how to choose its tokens; samplers must not be shared.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate for each.</param>
    /// <param name="stopTokens">Tokens that end a continuation, of which they are part.</param>
    /// <param name="advanced">Receives the number of tokens of the longest continuation so far, whenever it grows.</param>
    /// <param name="cancellationToken">Cancels before the next step, or while the prompt is read; nothing of it is cached then.</param>
    /// <returns>The continuations, by their score: the mean log-probability of their tokens. Among equals, in order of the samplers.</returns>
    /// <exception cref="ArgumentException">The prompt is empty, has ids out of the vocabulary, or doesn't fit into the model; or there are
    /// no samplers.</exception>
    public SearchResult Generate(
        IReadOnlyList<int> prompt,
        IReadOnlyList<Sampler> samplers,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        Action<int>? advanced = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(samplers);
        ArgumentNullException.ThrowIfNull(stopTokens);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxTokens);
        if (samplers.Count == 0 || samplers.Contains(null))
        {
            throw new ArgumentException("Expected a sampler for each continuation, but one is missing.", nameof(samplers));
        }

        TokenIds.Check(prompt, Model.Config, alreadyCached: Cache.Positions.Max());
        foreach (Sampler sampler in samplers)
        {
            sampler.AddPrompt(prompt);
        }

        using Tensor afterPrompt = Prefill([prompt], cancellationToken);
        using ModelCache forks = Fork(Cache, new int[samplers.Count]);
        List<int>[] tokens = [.. samplers.Select(_ => new List<int>())];
        double[] logProbabilities = new double[samplers.Count];
        float[] latest = new float[samplers.Count];
        int longest = 0;
        Tensor logits = afterPrompt.expand(samplers.Count, -1).DetachFromDisposeScope();
        foreach ((int sequence, int token) in Continue(forks, logits, samplers, maxTokens, stopTokens, latest, cancellationToken))
        {
            tokens[sequence].Add(token);
            logProbabilities[sequence] += latest[sequence];
            if (tokens[sequence].Count > longest)
            {
                advanced?.Invoke(++longest);
            }
        }

        IEnumerable<Hypothesis> hypotheses = tokens.Select((ids, i) =>
            new Hypothesis(ids, logProbabilities[i], logProbabilities[i] / ids.Count, stopTokens.Contains(ids[^1])));
        return SearchResult.Of([.. hypotheses.OrderByDescending(hypothesis => hypothesis.Score)], Cache, forks);
    }
}
