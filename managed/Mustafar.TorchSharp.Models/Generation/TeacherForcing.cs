using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Models.Generation;

/// <summary>Measures how well a model predicts given texts while it decodes them token by token.</summary>
public static class TeacherForcing
{
    // Number of positions whose logits are in memory at once.
    private const int HeadChunk = 256;

    /// <summary>
    /// Negative log likelihoods of tokens: the first <paramref name="prefill"/> tokens are read at once, as a prompt, and the rest one
    /// by one through the cache.
    /// </summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">An empty cache of as many sequences.</param>
    /// <param name="ids">Int64 [batch, n] with n ≥ 2.</param>
    /// <param name="prefill">1 to n; to n − 1 if the prompt is not scored.</param>
    /// <param name="includePrompt">Whether to score the tokens of the prompt too.</param>
    /// <param name="advanced">Receives the number of tokens done, after the prompt and after each token.</param>
    /// <returns>Float64, in nats: [batch, n − 1] for tokens 1 … n − 1 with the prompt, else [batch, n − prefill] for the rest.
    /// Each token is predicted from the position before it.</returns>
    public static Tensor NegativeLogLikelihoods(
        LlamaForCausalLM model, ModelCache cache, Tensor ids, int prefill, bool includePrompt, Action<int>? advanced = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(cache);
        ArgumentNullException.ThrowIfNull(ids);
        int tokens = checked((int)ids.shape[1]);
        ArgumentOutOfRangeException.ThrowIfLessThan(tokens, 2, nameof(ids));
        ArgumentOutOfRangeException.ThrowIfLessThan(prefill, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(prefill, includePrompt ? tokens : tokens - 1);

        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        List<Tensor> parts = [];
        Tensor last = Prompt(model, cache, ids, prefill, includePrompt, parts);
        advanced?.Invoke(prefill);
        if (prefill < tokens)
        {
            parts.Add(OfToken(last, ids.narrow(1, prefill, 1)));
            last.Dispose();
            Decode(model, cache, ids, prefill, step: 1, (i, logits) =>
            {
                parts.Add(OfToken(logits, ids.narrow(1, i, 1)).MoveToOuterDisposeScope());
                advanced?.Invoke(i + 1);
            });
        }

        return cat(parts, 1).MoveToOuterDisposeScope();
    }

    /// <summary>Negative log likelihoods of tokens under scores.</summary>
    /// <param name="logits">Scores [.., vocab_size].</param>
    /// <param name="ids">Int64 [..].</param>
    /// <returns>Float64 [..], in nats.</returns>
    public static Tensor OfToken(Tensor logits, Tensor ids)
    {
        ArgumentNullException.ThrowIfNull(logits);
        ArgumentNullException.ThrowIfNull(ids);
        using DisposeScope scope = NewDisposeScope();
        Tensor scores = logits.to(ScalarType.Float32);
        Tensor nll = scores.logsumexp(-1) - scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1);
        return nll.to(ScalarType.Float64).MoveToOuterDisposeScope();
    }

    /// <summary>Kullback-Leibler divergence of next-token distributions: the loss of q if p is the truth.</summary>
    /// <param name="p">Scores [.., vocab_size].</param>
    /// <param name="q">Scores [.., vocab_size].</param>
    /// <returns>Float64 [..], in nats.</returns>
    public static Tensor Divergence(Tensor p, Tensor q)
    {
        ArgumentNullException.ThrowIfNull(p);
        ArgumentNullException.ThrowIfNull(q);
        using DisposeScope scope = NewDisposeScope();
        Tensor logP = p.to(ScalarType.Float64).log_softmax(-1);
        Tensor logQ = q.to(ScalarType.Float64).log_softmax(-1);
        return (logP.exp() * (logP - logQ)).sum(-1).MoveToOuterDisposeScope();
    }

    /// <summary>Runs the tokens of texts through the cache from a given one on, some at a time.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">As many sequences, which hold the tokens before.</param>
    /// <param name="ids">Int64 [batch, n].</param>
    /// <param name="first">The first token to run, 1 to n.</param>
    /// <param name="step">Number of tokens per step: they see each other unpruned, and earlier ones as the cache stores them.</param>
    /// <param name="visit">Receives the index of a token and the scores [batch, count, vocab_size] of it and of those that follow it, in a
    /// separate dispose scope.</param>
    /// <param name="cancellationToken">Stops between steps.</param>
    internal static void Decode(
        LlamaForCausalLM model, ModelCache cache, Tensor ids, int first, int step, Action<int, Tensor> visit, CancellationToken cancellationToken = default)
    {
        int last = checked((int)ids.shape[1]) - 1;
        for (int i = first; i < last;)
        {
            using DisposeScope scope = NewDisposeScope();
            int count = Math.Min(step, last - i);
            Tensor some = ids.narrow(1, i, count);
            visit(i + 1, count == 1
                ? model.NextTokenLogits(some, cache, cancellationToken: cancellationToken).unsqueeze(1)
                : model.Head(model.Hidden(some, cache, cancellationToken: cancellationToken)));
            i += count;
        }
    }

    // The scores after the prompt's last token [batch, 1, vocab_size]; adds those of its tokens to parts.
    private static Tensor Prompt(LlamaForCausalLM model, ModelCache cache, Tensor ids, int prefill, bool include, List<Tensor> parts)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor hidden = model.Hidden(ids.narrow(1, 0, prefill), cache);
        for (int i = 0; include && i < prefill - 1; i += HeadChunk)
        {
            using DisposeScope chunk = NewDisposeScope();
            int count = Math.Min(HeadChunk, prefill - 1 - i);
            Tensor logits = model.Head(hidden.narrow(1, i, count));
            parts.Add(OfToken(logits, ids.narrow(1, i + 1, count)).MoveToOuterDisposeScope());
        }

        parts.ForEach(part => part.MoveToOuterDisposeScope());
        return model.Head(hidden.narrow(1, prefill - 1, 1)).MoveToOuterDisposeScope();
    }
}
