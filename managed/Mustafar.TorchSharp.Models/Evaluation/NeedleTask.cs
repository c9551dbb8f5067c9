using System.Globalization;
using System.Text.Json.Nodes;
using Mustafar.Models.Generation;

namespace Mustafar.Models.Evaluation;

/// <summary>
/// Needle in a haystack: a sentence with a number is hidden at a given depth in a text of a given length, and the question about the number
/// is decoded over the cached text.
/// </summary>
/// <remarks>
/// The score is the share of answers that begin with the number. A model too small to write the number may still prefer it:
/// <c>likeliest</c> is the share of samples in which the model finds it more likely than nine other numbers (0.1 by chance).
/// </remarks>
public sealed class NeedleTask : GenerationTask
{
    private const int Candidates = 10;
    private const int Digits = 6;

    private readonly List<int> _text;
    private readonly (int Length, double Depth)[] _cells;
    private readonly JsonObject _inputs;
    private readonly int _seed;

    /// <summary>Makes a task.</summary>
    /// <param name="language">The model.</param>
    /// <param name="text">The text to hide the sentence in; it must have line ends.</param>
    /// <param name="lengths">Context lengths, in tokens.</param>
    /// <param name="depths">Positions of the sentence, from 0 (the beginning) to 1 (the end).</param>
    /// <param name="samples">Number of samples for each length and depth, each with its own numbers and part of the text.</param>
    /// <param name="seed">Seed of the random numbers.</param>
    /// <param name="batch">Number of samples answered in one batch.</param>
    /// <exception cref="ArgumentException">The text is shorter than a context, or a context does not fit the model.</exception>
    public NeedleTask(
        LanguageModel language,
        string text,
        IReadOnlyList<int> lengths,
        IReadOnlyList<double> depths,
        int samples = 4,
        int seed = 0,
        int batch = 10)
        : base("needle", language, checked(Count(lengths) * Count(depths) * samples), batch)
    {
        ArgumentNullException.ThrowIfNull(text);
        foreach (double depth in depths.Where(depth => depth is not (>= 0 and <= 1)))
        {
            throw new ArgumentOutOfRangeException(nameof(depths), depth, "Expected depths from 0 to 1.");
        }

        (Lengths, Depths) = (lengths, depths);
        _text = language.Tokenizer.Encode(text, addSpecialTokens: false);
        _cells = [.. from length in lengths from depth in depths from _ in Enumerable.Range(0, samples) select (length, depth)];
        _seed = seed;
        _inputs = new JsonObject
        {
            ["text_sha256"] = TextWindows.HashOf(text),
            ["lengths"] = new JsonArray([.. lengths.Select(length => JsonValue.Create(length))]),
            ["depths"] = new JsonArray([.. depths.Select(depth => JsonValue.Create(depth))]),
            ["samples"] = samples,
            ["seed"] = seed,
            ["batch"] = batch,
        };

        // Make the longest sample now, so that a text that is too short is reported before anything is measured.
        PromptSample longest = MakeSample(Array.FindIndex(_cells, cell => cell.Length == lengths.Max()));
        TokenIds.Check([.. longest.Context, .. longest.Question, .. new int[longest.MaxTokens]], language.Model.Config);
    }

    /// <summary>Context lengths, in tokens.</summary>
    public IReadOnlyList<int> Lengths { get; }

    /// <summary>Positions of the sentence, from 0 (the beginning) to 1 (the end).</summary>
    public IReadOnlyList<double> Depths { get; }

    /// <inheritdoc/>
    public override IReadOnlyList<Metric> Metrics => [.. base.Metrics, new("likeliest", "likeliest of 10 numbers", "P1")];

    /// <inheritdoc/>
    public override JsonObject Inputs => _inputs.DeepClone().AsObject();

    /// <summary>The name of the samples of one length and depth in results.</summary>
    public static string GroupOf(int length, double depth) => string.Create(CultureInfo.InvariantCulture, $"{length} tokens, depth {depth:0.###}");

    /// <inheritdoc/>
    public override PromptSample MakeSample(int sample)
    {
        (int length, double depth) = _cells[sample];
        Random random = Words.RandomOf(_seed, sample);
        string name = Words.Name(random);
        string[] numbers = Words.Numbers(random, Digits, Candidates);
        string question = $"\nThe secret number of {name} is";
        List<int> line = Language.Tokenizer.Encode($"The secret number of {name} is {numbers[0]}.\n", addSpecialTokens: false);
        List<int> context = Haystack.Hide(
            Language.Tokenizer, _text, length, [line], random, (ends, textLength) => [Haystack.Nearest(ends, textLength, depth)]);
        return new PromptSample(
            context, Language.Tokenizer.Encode(question, addSpecialTokens: false), [numbers[0]], Digits + 2, GroupOf(length, depth))
        {
            Candidates = [.. numbers.Select(number => Language.Tokenizer.Encode($"{question} {number}", addSpecialTokens: false))],
        };
    }

    /// <inheritdoc/>
    public override double Score(PromptSample sample, string answer)
    {
        ArgumentNullException.ThrowIfNull(sample);
        ArgumentNullException.ThrowIfNull(answer);
        return answer.TrimStart().StartsWith(sample.Answers[0], StringComparison.Ordinal) ? 1 : 0;
    }

    /// <inheritdoc/>
    protected override long TokensOfSample(int sample) => _cells[sample].Length;

    private static int Count<T>(IReadOnlyList<T> items)
    {
        ArgumentNullException.ThrowIfNull(items);
        return items.Count;
    }
}
