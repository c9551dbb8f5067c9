using Mustafar.Models.Llama;

namespace Mustafar.Models.Generation;

/// <summary>Searches for the likeliest continuations of a text with several beams, without sampling.</summary>
/// <remarks>
/// <para>The rule is that of transformers with <c>num_beams</c>, <c>length_penalty</c> and <c>early_stopping=False</c>. Each step ranks
/// all continuations of the beams by one token by their log-probability. It considers the first 2 · beams, or (1 + s) · beams with s > 1
/// stop tokens. Of those that end with a stop token, the ones among the first <see cref="BeamSearchOptions.Beams"/> join the list of
/// finished continuations; the first beams of the others continue. The list keeps the best beams by score, log-probability / tokens ^
/// <see cref="BeamSearchOptions.LengthPenalty"/>, counting the stop token. The search ends when the list is full and the likeliest beam, if
/// it ended there, would not score above the worst of the list. It also ends after the last requested token, which finishes every
/// continuation. With a positive length penalty, a longer continuation might still have scored better than one in the list.</para>
/// <para>If the vocabulary is smaller than the number of beams, there are fewer at first. One beam gives the greedy continuation.</para>
/// <para>The prompt is read once. Beams are decoded on forks of its sequence, which share the compressed pages. Afterwards the given cache
/// ends with the prompt, as if nothing had been continued.</para>
/// </remarks>
public sealed class BeamSearch : TextGenerator
{
    /// <summary>Makes a search.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">Its cache, of batch size 1; it holds the text so far.</param>
    /// <exception cref="ArgumentException">The cache has a different batch size.</exception>
    public BeamSearch(LlamaForCausalLM model, ModelCache cache)
        : base(model, cache)
    {
        RequireOneSequence();
    }

    /// <summary>Searches for continuations, each until a stop token, the maximum number of tokens, or the model's context length.</summary>
    /// <param name="prompt">Ids to add to the text first, at least one.</param>
    /// <param name="options">How to search.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate for each continuation.</param>
    /// <param name="stopTokens">Tokens that end a continuation, of which they are part.</param>
    /// <param name="advanced">Receives the number of tokens of the beams, after each step.</param>
    /// <param name="cancellationToken">Cancels before the next step, or while the prompt is read; nothing of it is cached then.</param>
    /// <returns>The continuations by score, at most one per beam.</returns>
    /// <exception cref="ArgumentException">The prompt is empty, has ids out of the vocabulary, or doesn't fit into the model.</exception>
    public SearchResult Search(
        IReadOnlyList<int> prompt,
        BeamSearchOptions options,
        int maxTokens,
        IReadOnlySet<int> stopTokens,
        Action<int>? advanced = null,
        CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        ArgumentNullException.ThrowIfNull(stopTokens);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(maxTokens);
        TokenIds.Check(prompt, Model.Config, alreadyCached: Cache.Positions.Max());
        float[] logits = PrefillScores([prompt], cancellationToken);

        // The last token isn't cached, so it may be one past the model's positions.
        int most = Math.Min(maxTokens, Model.Config.MaxPositions - Cache.Positions.Max() + 1);
        BeamSelection selection = new(options, stopTokens);
        ModelCache? forks = null;
        DecodeSteps? steps = null; // of as many sequences as there are beams
        try
        {
            for (int step = 1; ; step++)
            {
                selection.Advance(logits, isLast: step == most);
                advanced?.Invoke(step);
                if (selection.IsDone)
                {
                    return SearchResult.Of(selection.Ended, Cache, forks);
                }

                cancellationToken.ThrowIfCancellationRequested();
                forks = Follow(selection.Running, forks);
                logits = Decoded(selection.Running, forks, ref steps, logits);
            }
        }
        finally
        {
            steps?.Dispose();
            forks?.Dispose();
        }
    }

    // Sequences that are the beams without their last tokens: those of the previous step, if there are any.
    private ModelCache Follow(IReadOnlyList<Beam> beams, ModelCache? forks)
    {
        int[] parents = [.. beams.Select(beam => beam.Parent)];
        if (forks is null)
        {
            return Fork(Cache, parents);
        }

        Reorder(forks, parents);
        return forks;
    }

    private float[] Decoded(IReadOnlyList<Beam> beams, ModelCache forks, ref DecodeSteps? steps, float[] logits)
    {
        if (steps?.Tokens.shape[0] != beams.Count)
        {
            steps?.Dispose();
            steps = new DecodeSteps(Model, forks.Cache, beams.Count);
        }

        int length = beams.Count * Model.Config.VocabSize;
        float[] next = logits.Length == length ? logits : new float[length];
        DecodeScores(steps, forks, [.. beams.Select(beam => beam.Token)], next);
        return next;
    }
}
