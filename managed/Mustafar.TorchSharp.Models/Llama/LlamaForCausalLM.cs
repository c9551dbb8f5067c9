using System.Diagnostics.CodeAnalysis;
using Mustafar.Modules;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Models.Llama;

/// <summary>A language model of the Llama family: the decoder and its head.</summary>
/// <remarks>Several threads may run it at once, each with its own cache, as long as none converts, loads or disposes it.</remarks>
public sealed class LlamaForCausalLM : nn.Module<Tensor, ModelCache, Tensor>
{
    // Maximum number of tokens that go through the model at once, unless one sequence has more. With Llama-3-8B's sizes, their gate and up
    // projections take 0.9 GB.
    private const long MostTokens = 16384;

#pragma warning disable IDE1006 // the fields' names are the keys of the state dictionary
    private readonly LlamaModel model;
    private readonly Linear? lm_head;
#pragma warning restore IDE1006

    /// <summary>Makes a model whose weights are not initialised, for a checkpoint to fill.</summary>
    /// <param name="config">Its architecture.</param>
    /// <param name="dtype">Type of the weights.</param>
    /// <param name="device">Device of the weights; the CPU if null.</param>
    // RegisterComponents finds the children by reflection; compiled ahead of time, an application has only the fields that are named.
    [DynamicDependency(DynamicallyAccessedMemberTypes.NonPublicFields, typeof(LlamaForCausalLM))]
    public LlamaForCausalLM(LlamaConfig config, ScalarType dtype, Device? device = null)
        : base(nameof(LlamaForCausalLM))
    {
        ArgumentNullException.ThrowIfNull(config);
        Config = config;
        DType = dtype;
        Device = device ?? CPU;
        model = new LlamaModel(config, dtype, Device);
        lm_head = config.TieWordEmbeddings ? null : Weights.Linear(config.HiddenSize, config.VocabSize, bias: false, dtype, Device);
        RegisterComponents();
        eval();
    }

    /// <summary>The model's architecture.</summary>
    public LlamaConfig Config { get; }

    /// <summary>Type of the weights and of the cache.</summary>
    public ScalarType DType { get; }

    /// <summary>Device of the weights and of the cache.</summary>
    public Device Device { get; }

    /// <summary>Scores of the next token after each of n new tokens.</summary>
    /// <param name="ids">Int64 [batch, n].</param>
    /// <param name="cache">The sequences, which the tokens join.</param>
    /// <returns>Logits [batch, n, vocab_size] in the type of the weights.</returns>
    public override Tensor forward(Tensor ids, ModelCache cache)
    {
        using DisposeScope scope = NewDisposeScope();
        return Head(Hidden(ids, cache)).MoveToOuterDisposeScope();
    }

    /// <summary>Hidden states of n new tokens, for <see cref="Head"/>.</summary>
    /// <param name="ids">Int64 [batch, n].</param>
    /// <param name="cache">The sequences, which the tokens join.</param>
    /// <param name="counts">How many of the n tokens belong to each sequence; all if empty.</param>
    /// <param name="cancellationToken">Cancels before the next layer; no token has been added then.</param>
    /// <returns>[batch, n, hidden_size].</returns>
    public Tensor Hidden(
        Tensor ids, ModelCache cache, ReadOnlySpan<int> counts = default, CancellationToken cancellationToken = default) =>
        model.forward(ids, cache, counts, cancellationToken);

    /// <summary>Scores of the next token from hidden states.</summary>
    /// <param name="hidden">[.., hidden_size].</param>
    /// <returns>Logits [.., vocab_size] in the type of the weights.</returns>
    public Tensor Head(Tensor hidden)
    {
        // For rows that are not adjacent torch copies the weights once for each sequence.
        using Tensor rows = hidden.contiguous();
        return lm_head is null ? model.Embedding.Project(rows) : lm_head.call(rows);
    }

    /// <summary>Scores of the next token after the last of the new tokens of each sequence.</summary>
    /// <remarks>
    /// If prompts have many tokens in total, a few sequences at a time go through the model. That bounds the memory needed in addition to
    /// the cache; each prompt is still read as a whole.
    /// </remarks>
    /// <param name="ids">Int64 [batch, n].</param>
    /// <param name="cache">The sequences, which the tokens join.</param>
    /// <param name="counts">How many of the n tokens belong to each sequence; all if empty.</param>
    /// <param name="cancellationToken">Cancels before the next layer; no token has been added then.</param>
    /// <returns>Logits [batch, vocab_size] in the type of the weights; without meaning for a sequence that got no token.</returns>
    public Tensor NextTokenLogits(
        Tensor ids, ModelCache cache, ReadOnlySpan<int> counts = default, CancellationToken cancellationToken = default)
    {
        model.Check(ids, cache);
        int batch = cache.BatchSize, rows = (int)Math.Clamp(MostTokens / ids.size(1), 1, batch);
        int[] before = [.. cache.Lengths];
        int first = 0;
        using DisposeScope scope = NewDisposeScope();
        List<Tensor> parts = [];
        try
        {
            for (; first < batch; first += rows)
            {
                Range some = first..Math.Min(first + rows, batch);
                parts.Add(LastRows(ids[some.Start.Value..some.End.Value], cache, some, counts.IsEmpty ? counts : counts[some], cancellationToken));
            }
        }
        catch
        {
            // The earlier sequences already have their tokens.
            for (int b = 0; b < first; b++)
            {
                cache.Cache.Truncate(cache.Sequences[b], before[b]);
            }

            throw;
        }

        return Head(parts.Count == 1 ? parts[0] : cat(parts, 0)).MoveToOuterDisposeScope();
    }

    // Hidden states [rows, hidden_size] of the last new token of each of some sequences.
    private Tensor LastRows(Tensor ids, ModelCache cache, Range rows, ReadOnlySpan<int> counts, CancellationToken cancellationToken)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor hidden = model.HiddenOf(ids, cache, rows, counts, cancellationToken);
        if (counts.IsEmpty)
        {
            return hidden.select(1, hidden.size(1) - 1).clone().MoveToOuterDisposeScope();
        }

        long[] lastRows = new long[counts.Length];
        for (int i = 0; i < lastRows.Length; i++)
        {
            lastRows[i] = Math.Max(counts[i] - 1, 0);
        }

        Tensor last = tensor(lastRows, device: hidden.device).reshape(-1, 1, 1).expand(-1, 1, hidden.size(2));
        return hidden.gather(1, last).squeeze(1).MoveToOuterDisposeScope();
    }

    /// <summary>Scores of the next token after a step of one token.</summary>
    /// <param name="tokens">Int64 [batch], of the step's sequences, in its order. A negative one, of a sequence without a token, counts as
    /// 0.</param>
    /// <param name="step">The step.</param>
    /// <param name="logits">Receives the scores, [batch, vocab_size] in the type of the weights.</param>
    internal void Decode(Tensor tokens, CacheStep step, Tensor logits)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor hidden = model.Apply(tokens.relu().unsqueeze(1), step).squeeze(1);
        Tensor head = lm_head is null ? model.Embedding.Weight : lm_head.weight!;
        MustafarOps.FusedLinear(
            hidden, head, new LinearFusion { Norm = model.Norm.Weight, Eps = model.Norm.Eps }, logits, step.Buffers);
    }
}
