namespace Mustafar.Models.Evaluation;

/// <summary>A question about a context, for a model to answer.</summary>
/// <param name="Context">Ids of the prompt, which is cached as a whole.</param>
/// <param name="Question">Ids that are decoded over the cached prompt, so that already the first token of the answer reads the cache;
/// none if the prompt asks.</param>
/// <param name="Answers">What is expected, for reports.</param>
/// <param name="MaxTokens">Tokens of the answer at most.</param>
/// <param name="Group">Samples of one group are also averaged apart, such as those of one depth; all are one if null.</param>
public record PromptSample(
    IReadOnlyList<int> Context, IReadOnlyList<int> Question, IReadOnlyList<string> Answers, int MaxTokens, string? Group = null)
{
    /// <summary>Questions with an answer each, of which the first is right: what is asked is whether the model finds it the likeliest.
    /// None if that is not asked.</summary>
    public IReadOnlyList<IReadOnlyList<int>> Candidates { get; init; } = [];
}
