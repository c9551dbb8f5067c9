using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Models.Chat;

/// <summary>A cache that knows which tokens it holds, so that a later prompt is only read from the first token that differs.</summary>
/// <remarks>Only one thread at a time may use it. Disposing it disposes the cache.</remarks>
public sealed class PromptCache : IDisposable
{
    /// <summary>With fewer tokens in common, prompts share little more than the markers that begin each chat.</summary>
    internal const int LeastTokens = 32;

    private readonly LlamaForCausalLM _model;
    private readonly ModelCache _cache;
    private List<int> _ids;

    // Whether tokens were compressed since the cache was empty, even if they have returned to the recent window.
    private bool _isPruned;

    /// <summary>Takes over a cache.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">Its cache, of batch size 1.</param>
    /// <param name="ids">The tokens that it holds; none if null.</param>
    /// <exception cref="ArgumentException">The cache holds another number of tokens, or has a different batch size.</exception>
    public PromptCache(LlamaForCausalLM model, ModelCache cache, IReadOnlyList<int>? ids = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(cache);
        _ids = [.. ids ?? []];
        if (cache.BatchSize != 1 || cache.Positions[0] != _ids.Count)
        {
            throw new ArgumentException(
                $"Expected {(ids is null ? "an empty cache" : $"a cache of {_ids.Count} tokens")} of one sequence, but got {cache.BatchSize} with {cache.Positions[0]} tokens.",
                nameof(cache));
        }

        (_model, _cache) = (model, cache);
        _isPruned = HasCompressed();
    }

    /// <summary>The tokens that the cache holds.</summary>
    public IReadOnlyList<int> Ids => _ids;

    /// <summary>The cache.</summary>
    public ModelCache Cache => _cache;

    /// <summary>Number of tokens of the latest prompt that were not read, since the cache held them.</summary>
    public int ReusedTokens { get; private set; }

    /// <summary>How many of a prompt's first tokens need not be read.</summary>
    /// <remarks>
    /// Those that the cache holds too, except the last one of the prompt. A few tokens of a compressed cache are not reused: a chat would
    /// depend on what another one pruned from the markers that begin both.
    /// </remarks>
    public int Reusable(IReadOnlyList<int> prompt)
    {
        ArgumentNullException.ThrowIfNull(prompt);
        int most = Math.Min(_ids.Count, prompt.Count - 1);
        int common = 0;
        while (common < most && _ids[common] == prompt[common])
        {
            common++;
        }

        return common >= LeastTokens || !_isPruned ? common : 0;
    }

    /// <summary>Continues a text. Only what the cache doesn't hold of the prompt is read; the rest of the cache is dropped.</summary>
    /// <param name="prompt">The whole text, at least one token.</param>
    /// <param name="sampler">Chooses tokens.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate.</param>
    /// <param name="stopTokens">Tokens that end the text.</param>
    /// <param name="cancellationToken">Cancels before the next token. While the prompt is read it cancels before the next layer; the cache
    /// then holds what was reused.</param>
    /// <returns>The tokens, each as soon as it is known. They are generated as they are read, and nothing is dropped before.</returns>
    /// <exception cref="ArgumentException">The prompt is empty, has ids out of the vocabulary, or doesn't fit into the model.</exception>
    public IEnumerable<int> Generate(
        IReadOnlyList<int> prompt, Sampler sampler, int maxTokens, IReadOnlySet<int> stopTokens, CancellationToken cancellationToken = default)
    {
        TokenIds.Check(prompt, _model.Config);
        return Run(prompt, sampler, maxTokens, stopTokens, cancellationToken);
    }

    /// <summary>Makes a cache that holds the first tokens of this one, for another text with the same beginning.</summary>
    /// <param name="tokens">How many.</param>
    public PromptCache Fork(int tokens)
    {
        PromptCache fork = new(_model, _cache.Fork([0]), _ids) { _isPruned = _isPruned };
        fork.Shorten(tokens);
        return fork;
    }

    /// <summary>Drops all tokens.</summary>
    public void Clear()
    {
        _cache.Clear();
        _ids = [];
        _isPruned = false;
    }

    /// <inheritdoc/>
    public void Dispose() => _cache.Dispose();

    private IEnumerable<int> Run(
        IReadOnlyList<int> prompt, Sampler sampler, int maxTokens, IReadOnlySet<int> stopTokens, CancellationToken cancellationToken)
    {
        cancellationToken.ThrowIfCancellationRequested();
        Shorten(Reusable(prompt));
        ReusedTokens = _ids.Count;
        sampler.AddPrompt(_ids);
        List<int> ids = [.. prompt];
        try
        {
            IEnumerable<int> tokens = new TokenGenerator(_model, _cache).Generate(
                [.. prompt.Skip(ReusedTokens)], sampler, maxTokens, stopTokens, cancellationToken);
            foreach (int token in tokens)
            {
                ids.Add(token);
                yield return token;
            }
        }
        finally
        {
            // Also if reading stopped in between, or generating failed.
            _ids = ids[.._cache.Positions[0]];
            _isPruned |= HasCompressed();
        }
    }

    private bool HasCompressed() => _cache.Cache is MustafarModelCache cache && cache.CompressedLengthOf(_cache.Sequences[0]) > 0;

    private void Shorten(int length)
    {
        try
        {
            // A cache that evicted tokens stores fewer of them.
            int stored = _cache.Length - (_ids.Count - length);
            if (length > 0 && stored > 0)
            {
                _cache.Truncate(stored);
                _ids.RemoveRange(length, _ids.Count - length);
                return;
            }
        }
        catch (InvalidOperationException)
        {
            // Tokens that the next one would see have left the sliding window or were evicted: everything must be read again.
        }

        Clear();
    }
}
