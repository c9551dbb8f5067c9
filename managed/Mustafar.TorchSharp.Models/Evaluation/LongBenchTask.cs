using System.Text.Json.Nodes;
using Mustafar.Models.Chat;
using Mustafar.Models.Generation;

namespace Mustafar.Models.Evaluation;

/// <summary>A data set of LongBench (Bai et al., arXiv 2308.14508), with its prompts, answer lengths and metric.</summary>
/// <remarks>
/// As published: a prompt that is too long loses its middle; a chat template is applied, except in the few-shot and code data sets trec,
/// triviaqa, samsum, lcc and repobench-p; answers are decoded greedily; in trec, triviaqa and samsum only the first line of an answer
/// counts, and decoding ends there. The score of an answer is the best over all correct answers.
/// </remarks>
public sealed class LongBenchTask : GenerationTask
{
    private static readonly string[] s_withoutChat = ["trec", "triviaqa", "samsum", "lcc", "repobench-p"];
    private static readonly string[] s_oneLine = ["trec", "triviaqa", "samsum"];

    private readonly LongBenchDataset _data;
    private readonly CutPrompts _prompts;
    private readonly int _batch;

    /// <summary>Reads a data set.</summary>
    /// <param name="language">The model.</param>
    /// <param name="folder">The LongBench folder.</param>
    /// <param name="dataset">One of <see cref="LongBenchFolder.Datasets"/>.</param>
    /// <param name="template">The chat template; null for a model without one.</param>
    /// <param name="maxPromptTokens">Number of tokens to which longer prompts are cut, not counting the chat template; if null, what the
    /// model's context leaves next to an answer. Published numbers used a few hundred less than the context: 3500 of 4096, 7500 of
    /// 8192.</param>
    /// <param name="samples">Maximum number of samples to measure, from the start of the file; null for all.</param>
    /// <param name="batch">Number of samples answered in one batch, which takes so many times the memory.</param>
    /// <exception cref="FileNotFoundException">A file does not exist.</exception>
    /// <exception cref="UnusableFileException">A file is not valid; the message names the file, line and key.</exception>
    /// <exception cref="ArgumentException">There is no such data set, or the model's context is too small for any prompt.</exception>
    public LongBenchTask(
        LanguageModel language,
        LongBenchFolder folder,
        string dataset,
        ChatTemplate? template = null,
        int? maxPromptTokens = null,
        int? samples = null,
        int batch = 1)
        : this(language, (folder ?? throw new ArgumentNullException(nameof(folder))).Read(dataset), template, maxPromptTokens, samples, batch)
    {
    }

    private LongBenchTask(LanguageModel language, LongBenchDataset data, ChatTemplate? template, int? maxPromptTokens, int? samples, int batch)
        : base($"longbench-{data.Name}", language, Math.Min(samples ?? data.Items.Count, data.Items.Count), batch)
    {
        (_data, _batch) = (data, batch);
        _prompts = new CutPrompts(language, s_withoutChat.Contains(data.Name) ? null : template, maxPromptTokens, data.MaxTokens, data.Name);
    }

    /// <inheritdoc/>
    public override JsonObject Inputs => new()
    {
        ["data_sha256"] = _data.Hash,
        ["prompt"] = _data.Prompt,
        ["max_tokens"] = _data.MaxTokens,
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
        LongBenchItem item = _data.Items[sample];
        return new LongBenchSample(_prompts.Encode(item.Prompt), item.Answers, _data.MaxTokens, item.Classes);
    }

    /// <inheritdoc/>
    public override double Score(PromptSample sample, string answer)
    {
        ArgumentNullException.ThrowIfNull(sample);
        ArgumentNullException.ThrowIfNull(answer);
        string text = s_oneLine.Contains(_data.Name) ? FirstLine(answer) : answer;
        IReadOnlyList<string> classes = (sample as LongBenchSample)?.Classes ?? [];
        return sample.Answers.Max(expected => _data.Name switch
        {
            "gov_report" or "qmsum" or "multi_news" or "samsum" => LongBenchMetrics.RougeL(text, expected),
            "trec" => LongBenchMetrics.Classification(text, expected, classes),
            "passage_retrieval_en" => LongBenchMetrics.Retrieval(text, expected),
            "passage_count" => LongBenchMetrics.Count(text, expected),
            "lcc" or "repobench-p" => LongBenchMetrics.CodeSimilarity(text, expected),
            _ => LongBenchMetrics.QaF1(text, expected),
        });
    }

    /// <inheritdoc/>
    protected override bool IsComplete(string answer)
    {
        ArgumentNullException.ThrowIfNull(answer);
        return s_oneLine.Contains(_data.Name) && answer.TrimStart('\n').Contains('\n', StringComparison.Ordinal);
    }

    /// <inheritdoc/>
    protected override long TokensOfSample(int sample) => _prompts.TokensOf(_data.Items[sample].Prompt) + _data.MaxTokens;

    private static string FirstLine(string answer) => answer.TrimStart('\n').Split('\n')[0];

    private sealed record LongBenchSample(IReadOnlyList<int> Prompt, IReadOnlyList<string> Expected, int Most, IReadOnlyList<string> Classes)
        : PromptSample(Prompt, [], Expected, Most);
}
