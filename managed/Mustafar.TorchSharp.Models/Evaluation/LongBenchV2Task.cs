using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Mustafar.Models.Chat;
using Mustafar.Models.Generation;

namespace Mustafar.Models.Evaluation;

/// <summary>LongBench v2 (Bai et al., arXiv 2412.15204): questions about long texts with four choices, one of which is correct.</summary>
/// <remarks>
/// Prompts and the parsing of answers are those of the published script without reasoning: a prompt that is too long loses its middle, an
/// answer has at most 128 tokens, and an answer that names no choice is wrong. Answers are decoded greedily.
/// </remarks>
public sealed partial class LongBenchV2Task : GenerationTask
{
    private const int AnswerTokens = 128;

    private readonly LongBenchV2File _file;
    private readonly CutPrompts _prompts;
    private readonly int _batch;

    /// <summary>Reads the questions.</summary>
    /// <param name="language">The model.</param>
    /// <param name="path">The published data.json, or the same objects one per line (JSONL).</param>
    /// <param name="template">The chat template; null for a model without one.</param>
    /// <param name="maxPromptTokens">Number of tokens to which longer prompts are cut, not counting the chat template; if null, what the
    /// model's context leaves next to an answer.</param>
    /// <param name="samples">Maximum number of questions to measure, from the start of the file; null for all.</param>
    /// <param name="batch">Number of questions answered in one batch, which takes so many times the memory.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="UnusableFileException">The file is not valid; the message names the file, question and key.</exception>
    /// <exception cref="ArgumentException">The model's context is too small for any prompt.</exception>
    public LongBenchV2Task(
        LanguageModel language, string path, ChatTemplate? template = null, int? maxPromptTokens = null, int? samples = null, int batch = 1)
        : this(language, LongBenchV2File.Load(path), template, maxPromptTokens, samples, batch)
    {
    }

    private LongBenchV2Task(LanguageModel language, LongBenchV2File file, ChatTemplate? template, int? maxPromptTokens, int? samples, int batch)
        : base("longbench-v2", language, Math.Min(samples ?? file.Questions.Count, file.Questions.Count), batch) =>
        (_file, _prompts, _batch) = (file, new CutPrompts(language, template, maxPromptTokens, AnswerTokens, "longbench-v2"), batch);

    /// <inheritdoc/>
    public override JsonObject Inputs => new()
    {
        ["data_sha256"] = _file.Hash,
        ["max_prompt_tokens"] = _prompts.MaxTokens,
        ["samples"] = Samples,
        ["batch"] = _batch,
        ["chat_template_sha256"] = _prompts.TemplateHash,
    };

    /// <inheritdoc/>
    protected override IReadOnlySet<int> StopTokens => _prompts.StopTokens;

    /// <inheritdoc/>
    public override PromptSample MakeSample(int sample)
    {
        LongBenchV2Question question = _file.Questions[sample];
        return new PromptSample(
            _prompts.Encode(question.Prompt), [], [question.Answer], AnswerTokens, $"{question.Difficulty}, {question.Length}");
    }

    /// <inheritdoc/>
    public override double Score(PromptSample sample, string answer)
    {
        ArgumentNullException.ThrowIfNull(sample);
        ArgumentNullException.ThrowIfNull(answer);
        return ChoiceOf(answer) == sample.Answers[0] ? 1 : 0;
    }

    /// <summary>The choice that an answer names: A, B, C or D; null if it names none.</summary>
    internal static string? ChoiceOf(string answer)
    {
        string text = answer.Replace("*", "", StringComparison.Ordinal);
        Match match = InParentheses().Match(text) is { Success: true } found ? found : Alone().Match(text);
        return match.Success ? match.Groups[1].Value : null;
    }

    /// <inheritdoc/>
    protected override bool IsComplete(string answer) => ChoiceOf(answer ?? "") is not null;

    /// <inheritdoc/>
    protected override long TokensOfSample(int sample) => _prompts.TokensOf(_file.Questions[sample].Prompt) + AnswerTokens;

    [GeneratedRegex(@"The correct answer is \(([A-D])\)", RegexOptions.CultureInvariant)]
    private static partial Regex InParentheses();

    [GeneratedRegex(@"The correct answer is ([A-D])", RegexOptions.CultureInvariant)]
    private static partial Regex Alone();
}
