namespace Mustafar.Models.Generation;

/// <summary>One of several continuations of a text, and how likely it is.</summary>
/// <param name="Tokens">Its tokens, at least one; a stop token that ended it is the last.</param>
/// <param name="LogProbability">Natural logarithm of its probability under the model: the sum over its tokens, without temperature, top-k
/// and top-p.</param>
/// <param name="Score">The number by which continuations are ordered, largest first.</param>
/// <param name="IsStopped">Whether a stop token ended it, not its length.</param>
public sealed record Hypothesis(IReadOnlyList<int> Tokens, double LogProbability, double Score, bool IsStopped);
