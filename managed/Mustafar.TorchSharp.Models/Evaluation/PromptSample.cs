namespace Mustafar.Models.Evaluation;

/// <summary>A question about a context, for a model to answer.</summary>
/// <param name="Context">Token ids of the prompt, which is cached as a whole.</param>
/// <param name="Question">Token ids that are decoded over the cached prompt, so that even the first token of the answer reads the cache;
/// empty if the prompt contains the question.</param>
/// <param name="Answers">The expected answers, for reports.</param>
/// <param name="MaxTokens">Maximum number of tokens in the answer.</param>
/// <param name="Group">The sample's group, such as the samples of one depth, which is also averaged on its own; null for none.</param>
public record PromptSample(
    IReadOnlyList<int> Context, IReadOnlyList<int> Question, IReadOnlyList<string> Answers, int MaxTokens, string? Group = null)
{
    /// <summary>The question with each of several answers, the first of which is correct, to measure whether the model finds that one the
    /// likeliest. Empty if this is not measured.</summary>
    public IReadOnlyList<IReadOnlyList<int>> Candidates { get; init; } = [];
}
