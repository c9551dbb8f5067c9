using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Models.Evaluation;

/// <summary>Ranks continuations by their probability: a measure for models too small to write them.</summary>
internal static class CandidateRank
{
    /// <summary>The rank of the first of several continuations of a cached text by probability: 1 for the likeliest.</summary>
    /// <param name="model">The model.</param>
    /// <param name="cache">The cached texts; they are not changed.</param>
    /// <param name="sequence">The text to continue.</param>
    /// <param name="candidates">Two or more distinct continuations. Their common beginning makes no difference.</param>
    public static int OfFirst(LlamaForCausalLM model, ModelCache cache, int sequence, IReadOnlyList<IReadOnlyList<int>> candidates)
    {
        double[] scores = LogProbabilities(model, cache, sequence, candidates);
        return scores.Count(score => score > scores[0]) + 1;
    }

    private static double[] LogProbabilities(
        LlamaForCausalLM model, ModelCache cache, int sequence, IReadOnlyList<IReadOnlyList<int>> candidates)
    {
        int alike = Enumerable.Range(0, candidates.Min(ids => ids.Count)).TakeWhile(i => candidates.All(ids => ids[i] == candidates[0][i])).Count();
        if (alike == 0)
        {
            throw new ArgumentException("Expected candidates that begin alike, with the question, but the first tokens differ.", nameof(candidates));
        }

        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        using ModelCache forks = cache.Fork(Enumerable.Repeat(sequence, candidates.Count).ToArray());
        Tensor ids = TokenIds.ToPaddedTensor(candidates, model.Device);
        Tensor hidden = model.Hidden(ids, forks, [.. candidates.Select(item => item.Count)]);
        long predicted = ids.shape[1] - alike;
        Tensor nll = TeacherForcing.OfToken(model.Head(hidden.narrow(1, alike - 1, predicted)), ids.narrow(1, alike, predicted));
        double[] all = nll.cpu().contiguous().data<double>().ToArray();
        return [.. candidates.Select((item, i) => -all.Skip(i * (int)predicted).Take(item.Count - alike).Sum())];
    }
}
