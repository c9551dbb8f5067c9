using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Models.Generation;

/// <summary>Continues texts token by token, and measures how long the model takes.</summary>
public sealed class TokenGenerator : TextGenerator
{
    /// <summary>Makes a generator.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">Its cache; it holds the texts so far.</param>
    public TokenGenerator(LlamaForCausalLM model, ModelCache cache)
        : base(model, cache)
    {
    }

    /// <summary>Continues a text until a stop token, the maximum number of tokens, or the model's context length.</summary>
    /// <param name="prompt">Ids to add to the text first, at least one.</param>
    /// <param name="sampler">Chooses tokens.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate.</param>
    /// <param name="stopTokens">Tokens that end the text; they are generated, but not cached.</param>
    /// <param name="cancellationToken">Cancels before the next step, or while a prompt is read; nothing of it is cached then.</param>
    /// <returns>The tokens, each as soon as it is known.</returns>
    /// <exception cref="ArgumentException">The prompt is empty, has ids out of the vocabulary, or doesn't fit into the model; or the
    /// cache has more than one sequence.</exception>
    public IEnumerable<int> Generate(
        IReadOnlyList<int> prompt,
        Sampler sampler,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        CancellationToken cancellationToken = default) =>
        Generate([prompt], [sampler], maxTokens, stopTokens, cancellationToken).Select(item => item.Token);

    /// <summary>
    /// Continues several texts in one batch, each until a stop token, the maximum number of tokens, or the model's context length. The
    /// prompts may have different lengths; no padding is cached.
    /// </summary>
    /// <param name="prompts">For each sequence of the cache, ids to add to its text first, at least one.</param>
    /// <param name="samplers">For each sequence, how to choose its tokens; samplers must not be shared.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate for each text.</param>
    /// <param name="stopTokens">Tokens that end a text; they are generated, but not cached.</param>
    /// <param name="cancellationToken">Cancels before the next step, or while a prompt is read; nothing of it is cached then.</param>
    /// <returns>The tokens, those of one step in order of the sequences.</returns>
    /// <exception cref="ArgumentException">A prompt is empty, has ids out of the vocabulary, or doesn't fit into the model; or the number
    /// of prompts or samplers differs from the cache's number of sequences.</exception>
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
        if (prompts.Count != Cache.BatchSize)
        {
            throw new ArgumentException(
                $"Expected a prompt for each of the cache's {Cache.BatchSize} sequences, but got {prompts.Count}.", nameof(prompts));
        }

        if (samplers.Count != prompts.Count || samplers.Contains(null))
        {
            throw new ArgumentException(
                $"Expected a sampler for each of {prompts.Count} sequences, but got {samplers.Count(sampler => sampler is not null)}.",
                nameof(samplers));
        }

        for (int i = 0; i < prompts.Count; i++)
        {
            TokenIds.Check(prompts[i], Model.Config, alreadyCached: Cache.Positions[i]);
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
        if (maxTokens == 0)
        {
            yield break;
        }

        for (int i = 0; i < samplers.Count; i++)
        {
            samplers[i].AddPrompt(prompts[i]);
        }

        Tensor logits = Prefill(prompts, cancellationToken);
        foreach (SequenceToken item in Continue(Cache, logits, samplers, maxTokens, stopTokens, logProbabilities: null, cancellationToken))
        {
            yield return item;
        }
    }
}
