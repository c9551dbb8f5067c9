using System.Text.Json.Nodes;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Models.Evaluation;

/// <summary>A task whose samples are answered by greedy decoding over the cached prompt and scored one by one.</summary>
/// <remarks>Derive from it to define a task of your own. Prompts always have dense attention; what follows reads the cache.</remarks>
public abstract class GenerationTask : EvaluationTask
{
    private static readonly Metric[] s_metrics = [new("score", "score", "P1"), new("standard_error", "standard error", "P1")];

    private readonly int _samples;
    private readonly int _batch;

    /// <summary>Makes a task.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="language">The model.</param>
    /// <param name="samples">Number of samples.</param>
    /// <param name="batch">Number of samples answered in one batch.</param>
    protected GenerationTask(string name, LanguageModel language, int samples, int batch)
        : base(name, language)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(samples);
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(batch);
        (_samples, _batch) = (samples, batch);
    }

    /// <inheritdoc/>
    public override IReadOnlyList<Metric> Metrics => s_metrics;

    /// <inheritdoc/>
    public sealed override int Parts => (_samples + _batch - 1) / _batch;

    /// <summary>Number of samples.</summary>
    public int Samples => _samples;

    /// <summary>Tokens that end an answer.</summary>
    protected virtual IReadOnlySet<int> StopTokens => Language.StopTokens;

    /// <inheritdoc/>
    public sealed override long TokensOf(int part) => SamplesOf(part).Sum(TokensOfSample);

    /// <inheritdoc/>
    public sealed override JsonNode MeasurePart(
        CacheSetting setting, int part, IProgress<double> progress, CancellationToken cancellationToken)
    {
        ArgumentNullException.ThrowIfNull(setting);
        ArgumentNullException.ThrowIfNull(progress);
        PromptSample[] samples = [.. SamplesOf(part).Select(MakeSample)];
        using ModelCache cache = setting.NewCache(Language.Model, samples.Length);
        Prefill(cache, samples, cancellationToken);
        progress.Report(0.5);
        int[] ranks = [.. samples.Select((sample, i) =>
            sample.Candidates.Count == 0 ? 0 : CandidateRank.OfFirst(Language.Model, cache, i, sample.Candidates))];
        string[] answers = Answer(cache, samples, cancellationToken);
        progress.Report(1);
        return new JsonArray([.. samples.Select((sample, i) =>
        {
            JsonObject answer = new()
            {
                ["group"] = sample.Group,
                ["expected"] = new JsonArray([.. sample.Answers.Select(text => JsonValue.Create(text))]),
                ["got"] = answers[i],
                ["score"] = Score(sample, answers[i]),
            };
            if (ranks[i] > 0)
            {
                answer["rank"] = ranks[i];
            }

            return answer;
        })]);
    }

    /// <inheritdoc/>
    public sealed override TaskResult Summarize(IReadOnlyList<JsonNode> parts)
    {
        ArgumentNullException.ThrowIfNull(parts);
        JsonObject[] answers = [.. parts.SelectMany(part => part.AsArray()).Select(answer => answer!.AsObject())];
        double mean = answers.Average(answer => (double)answer["score"]!);
        double variance = answers.Average(answer => Math.Pow((double)answer["score"]! - mean, 2));
        Dictionary<string, double> metrics = new()
        {
            ["score"] = mean,
            ["standard_error"] = Math.Sqrt(variance / answers.Length),
        };
        if (answers[0].ContainsKey("rank"))
        {
            metrics["likeliest"] = answers.Average(IsLikeliest);
        }

        JsonObject groups = [];
        foreach (IGrouping<string?, JsonObject> group in answers.GroupBy(answer => (string?)answer["group"]).Where(group => group.Key is not null))
        {
            JsonObject means = new() { ["score"] = group.Average(answer => (double)answer["score"]!) };
            if (metrics.ContainsKey("likeliest"))
            {
                means["likeliest"] = group.Average(IsLikeliest);
            }

            groups[group.Key!] = means;
        }

        return new TaskResult(
            metrics, new JsonObject { ["groups"] = groups, ["answers"] = new JsonArray([.. answers.Select(answer => answer.DeepClone())]) });

        static double IsLikeliest(JsonObject answer) => (int)answer["rank"]! == 1 ? 1 : 0;
    }

    /// <summary>Makes a sample: always the same one for the same number.</summary>
    /// <param name="sample">The sample's number, 0 to <see cref="Samples"/> − 1.</param>
    public abstract PromptSample MakeSample(int sample);

    /// <summary>Scores an answer.</summary>
    /// <param name="sample">The sample, from <see cref="MakeSample"/>.</param>
    /// <param name="answer">What the model wrote.</param>
    /// <returns>The score, 0 to 1.</returns>
    public abstract double Score(PromptSample sample, string answer);

    /// <summary>The approximate number of tokens that the model processes for a sample.</summary>
    protected abstract long TokensOfSample(int sample);

    /// <summary>Whether an answer is long enough that its score can no longer change, so that decoding may stop.</summary>
    protected virtual bool IsComplete(string answer) => false;

    private IEnumerable<int> SamplesOf(int part) => Enumerable.Range(part * _batch, Math.Min(_batch, _samples - (part * _batch)));

    // Caches the contexts if there are questions; without, the generator caches them.
    private void Prefill(ModelCache cache, PromptSample[] samples, CancellationToken cancellationToken)
    {
        if (samples.Any(sample => (sample.Question.Count == 0) != (samples[0].Question.Count == 0)))
        {
            throw new InvalidOperationException($"{Name}: expected all samples to have a question, or none, but they are mixed.");
        }

        if (samples[0].Question.Count == 0)
        {
            return;
        }

        using IDisposable mode = inference_mode();
        using DisposeScope scope = NewDisposeScope();
        int[] counts = [.. samples.Select(sample => sample.Context.Count)];
        Tensor ids = TokenIds.ToPaddedTensor([.. samples.Select(sample => sample.Context)], Language.Model.Device);
        Language.Model.NextTokenLogits(ids, cache, counts.All(count => count == counts[0]) ? default : counts, cancellationToken);
    }

    private string[] Answer(ModelCache cache, PromptSample[] samples, CancellationToken cancellationToken)
    {
        List<int>[] tokens = [.. samples.Select(_ => new List<int>())];
        bool[] complete = new bool[samples.Length];
        TokenGenerator generator = new(Language.Model, cache);
        IReadOnlyList<int>[] prompts = [.. samples.Select(sample => sample.Question.Count > 0 ? sample.Question : sample.Context)];
        Sampler[] samplers = [.. samples.Select(_ => new Sampler(SamplingParameters.Greedy))];
        int most = samples.Max(sample => sample.MaxTokens);
        foreach ((int i, int token) in generator.Generate(prompts, samplers, most, StopTokens, cancellationToken))
        {
            if (!StopTokens.Contains(token) && tokens[i].Count < samples[i].MaxTokens && !complete[i])
            {
                tokens[i].Add(token);
                complete[i] = tokens[i].Count == samples[i].MaxTokens || IsComplete(Text(i));
            }
            else
            {
                complete[i] = true;
            }

            if (complete.All(done => done))
            {
                break;
            }
        }

        return [.. tokens.Select((_, i) => Text(i))];

        string Text(int i) => Language.Tokenizer.Decode(tokens[i]);
    }
}
