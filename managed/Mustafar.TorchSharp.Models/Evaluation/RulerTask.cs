using System.Text.Json.Nodes;
using Mustafar.Models.Generation;

namespace Mustafar.Models.Evaluation;

/// <summary>What a <see cref="RulerTask"/> hides in a text and asks for.</summary>
public enum RulerKind
{
    /// <summary>Numbers of several names, one of which is asked for.</summary>
    MultiKey,

    /// <summary>Several numbers of one name, all of which are asked for.</summary>
    MultiValue,

    /// <summary>Chains of variables: the first one of a chain gets a number, each of the others the value of the one before. All variables
    /// of one chain are asked for.</summary>
    VariableTracking,
}

/// <summary>Synthetic tasks in the style of RULER (Hsieh et al., arXiv 2404.06654): retrieval of several items, and tracing.</summary>
/// <remarks>
/// The lines are inserted at random line ends of the text, and the question is decoded over the cached text. As in RULER, the score of an
/// answer is the share of the expected items that it contains. Names, wording and text are not those of RULER, so the scores are for
/// comparing caches of one model, not for comparison with published ones.
/// </remarks>
public sealed class RulerTask : GenerationTask
{
    private const int Keys = 4;
    private const int Values = 4;
    private const int Chains = 2;
    private const int Hops = 4;
    private const int Digits = 6;

    private readonly RulerKind _kind;
    private readonly List<int> _text;
    private readonly int[] _lengths;
    private readonly int _seed;
    private readonly JsonObject _inputs;

    /// <summary>Makes a task.</summary>
    /// <param name="language">The model.</param>
    /// <param name="kind">What to hide and ask for.</param>
    /// <param name="text">The text to hide it in; it must have line ends.</param>
    /// <param name="lengths">Context lengths, in tokens.</param>
    /// <param name="samples">Number of samples for each length.</param>
    /// <param name="seed">Seed of the random numbers.</param>
    /// <param name="batch">Number of samples answered in one batch.</param>
    /// <exception cref="ArgumentException">The text is shorter than a context, or a context does not fit the model.</exception>
    public RulerTask(
        LanguageModel language, RulerKind kind, string text, IReadOnlyList<int> lengths, int samples = 20, int seed = 0, int batch = 10)
        : base(NameOf(kind), language, checked((lengths ?? throw new ArgumentNullException(nameof(lengths))).Count * samples), batch)
    {
        ArgumentNullException.ThrowIfNull(text);
        (_kind, _seed) = (kind, seed);
        _text = language.Tokenizer.Encode(text, addSpecialTokens: false);
        _lengths = [.. lengths.SelectMany(length => Enumerable.Repeat(length, samples))];
        _inputs = new JsonObject
        {
            ["text_sha256"] = TextWindows.HashOf(text),
            ["lengths"] = new JsonArray([.. lengths.Select(length => JsonValue.Create(length))]),
            ["samples"] = samples,
            ["seed"] = seed,
            ["batch"] = batch,
        };

        PromptSample longest = MakeSample(Array.IndexOf(_lengths, _lengths.Max()));
        TokenIds.Check([.. longest.Context, .. longest.Question, .. new int[longest.MaxTokens]], language.Model.Config);
    }

    /// <inheritdoc/>
    public override JsonObject Inputs => _inputs.DeepClone().AsObject();

    /// <inheritdoc/>
    public override PromptSample MakeSample(int sample)
    {
        Random random = Words.RandomOf(_seed, sample);
        (string[] lines, string question, string[] answers) = _kind switch
        {
            RulerKind.MultiKey => MultiKey(random),
            RulerKind.MultiValue => MultiValue(random),
            _ => VariableTracking(random),
        };
        List<int>[] ids = [.. lines.Select(line => Language.Tokenizer.Encode(line + "\n", addSpecialTokens: false))];
        List<int> context = Haystack.Hide(
            Language.Tokenizer, _text, _lengths[sample], ids, random, (ends, _) => ids.Select(_ => ends[random.Next(ends.Length)]).ToArray());

        // Room for twice the answers, and some words between them.
        int most = (2 * Language.Tokenizer.Encode(string.Join(", ", answers), addSpecialTokens: false).Count) + 8;
        return new PromptSample(
            context, Language.Tokenizer.Encode($"\n{question}", addSpecialTokens: false), answers, most, $"{_lengths[sample]} tokens");
    }

    /// <inheritdoc/>
    public override double Score(PromptSample sample, string answer)
    {
        ArgumentNullException.ThrowIfNull(sample);
        ArgumentNullException.ThrowIfNull(answer);
        return sample.Answers.Average(expected => answer.Contains(expected, StringComparison.OrdinalIgnoreCase) ? 1 : 0);
    }

    /// <inheritdoc/>
    protected override long TokensOfSample(int sample) => _lengths[sample];

    private static string NameOf(RulerKind kind) => kind switch
    {
        RulerKind.MultiKey => "ruler-multikey",
        RulerKind.MultiValue => "ruler-multivalue",
        RulerKind.VariableTracking => "ruler-variables",
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "Expected one of the kinds."),
    };

    private static (string[] Lines, string Question, string[] Answers) MultiKey(Random random)
    {
        string[] names = Words.Names(random, Keys);
        string[] numbers = Words.Numbers(random, Digits, Keys);
        int asked = random.Next(Keys);
        return (
            [.. names.Zip(numbers, (name, number) => $"The secret number of {name} is {number}.")],
            $"The secret number of {names[asked]} is",
            [numbers[asked]]);
    }

    private static (string[] Lines, string Question, string[] Answers) MultiValue(Random random)
    {
        string name = Words.Name(random);
        string[] numbers = Words.Numbers(random, Digits, Values);
        return (
            [.. numbers.Select(number => $"One of the secret numbers of {name} is {number}.")],
            $"All {Values} secret numbers of {name} are",
            numbers);
    }

    // The lines of a chain stay in order; the chains are interleaved.
    private static (string[] Lines, string Question, string[] Answers) VariableTracking(Random random)
    {
        string[][] names = [.. Words.Names(random, Chains * (Hops + 1)).Select(name => name.ToUpperInvariant()).Chunk(Hops + 1)];
        string[] numbers = Words.Numbers(random, Digits, Chains);
        Queue<string>[] chains =
        [
            .. names.Select((chain, c) => new Queue<string>(
                chain.Select((name, i) => i == 0 ? $"VAR {name} = {numbers[c]}" : $"VAR {name} = VAR {chain[i - 1]}"))),
        ];
        List<string> lines = [];
        while (chains.Any(chain => chain.Count > 0))
        {
            Queue<string>[] left = [.. chains.Where(chain => chain.Count > 0)];
            lines.Add(left[random.Next(left.Length)].Dequeue());
        }

        return ([.. lines], $"The {Hops + 1} variables with the value {numbers[0]} are", names[0]);
    }
}
