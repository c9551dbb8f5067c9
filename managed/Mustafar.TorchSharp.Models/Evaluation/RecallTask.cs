using System.Text.Json.Nodes;
using Mustafar.Models.Generation;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Models.Evaluation;

/// <summary>
/// Recall of notes in code: a long context contains four lines <c># note NAME = DIGITS</c>, and the question <c># recall NAME =</c> is
/// decoded over the cached context. The score is the share of answers that begin with the digits.
/// </summary>
public sealed class RecallTask : GenerationTask
{
    private const int Notes = 4;
    private const int NameLetters = 5;
    private const int Digits = 6;

    private readonly PromptSample[] _samples;
    private readonly JsonObject _inputs;

    /// <summary>Makes a task.</summary>
    /// <param name="language">The model.</param>
    /// <param name="text">Code; random parts of it become the contexts.</param>
    /// <param name="contexts">Number of contexts.</param>
    /// <param name="context">Number of tokens in a context.</param>
    /// <param name="seed">Seed of the random numbers, which choose parts, positions, names, digits, and the note that is asked for.</param>
    /// <param name="batch">Number of contexts decoded in one batch.</param>
    /// <exception cref="ArgumentException">The context leaves no room for code or does not fit the model, or the text is shorter or has no
    /// lines.</exception>
    public RecallTask(LanguageModel language, string text, int contexts = 100, int context = 2048, int seed = 0, int batch = 10)
        : base("recall", language, contexts, batch)
    {
        ArgumentNullException.ThrowIfNull(text);
        List<int> ids = language.Tokenizer.Encode(text, addSpecialTokens: false);
        Random random = new(seed);
        _samples = [.. Enumerable.Range(0, contexts).Select(_ => NewSample(language.Tokenizer, ids, context, random))];
        foreach (PromptSample sample in _samples)
        {
            TokenIds.Check([.. sample.Context, .. sample.Question, .. new int[sample.MaxTokens]], language.Model.Config);
        }

        _inputs = new JsonObject
        {
            ["text_sha256"] = TextWindows.HashOf(text), ["contexts"] = contexts, ["context"] = context, ["seed"] = seed, ["batch"] = batch,
        };
    }

    /// <inheritdoc/>
    public override JsonObject Inputs => _inputs.DeepClone().AsObject();

    /// <summary>Makes a context and its question.</summary>
    internal static PromptSample NewSample(TextTokenizer tokenizer, IReadOnlyList<int> text, int length, Random random)
    {
        string[] names = new string[Notes];
        string[] answers = new string[Notes];
        List<int>[] notes = new List<int>[Notes];
        for (int i = 0; i < Notes; i++)
        {
            do
            {
                names[i] = Draw(random, "abcdefghijklmnopqrstuvwxyz", NameLetters);
            }
            while (names.AsSpan(0, i).Contains(names[i]));
            answers[i] = Draw(random, "0123456789", Digits);
            notes[i] = tokenizer.Encode($"# note {names[i]} = {answers[i]}\n", addSpecialTokens: false);
        }

        List<int> context = Haystack.Hide(
            tokenizer, text, length, notes, random, (ends, _) => notes.Select(_ => ends[random.Next(ends.Length)]).ToArray());
        int asked = random.Next(Notes);
        List<int> question = tokenizer.Encode($"\n# recall {names[asked]} =", addSpecialTokens: false);

        // A space and, at worst, six digits of one token each.
        return new PromptSample(context, question, [answers[asked]], Digits + 1);
    }

    /// <inheritdoc/>
    public override PromptSample MakeSample(int sample) => _samples[sample];

    /// <inheritdoc/>
    public override double Score(PromptSample sample, string answer)
    {
        ArgumentNullException.ThrowIfNull(sample);
        ArgumentNullException.ThrowIfNull(answer);
        return answer.TrimStart(' ').StartsWith(sample.Answers[0], StringComparison.Ordinal) ? 1 : 0;
    }

    /// <inheritdoc/>
    protected override long TokensOfSample(int sample) => _samples[sample].Context.Count;

    private static string Draw(Random random, string alphabet, int count) => new(random.GetItems(alphabet.AsSpan(), count));
}
