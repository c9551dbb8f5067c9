using Mustafar.Models.Tokenizer;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A long text that hides a few notes, and the question for one of them.</summary>
/// <param name="Context">Ids of the text, those that begin a text included.</param>
/// <param name="Question">Ids that ask for a note's digits.</param>
/// <param name="Answer">The digits.</param>
public sealed record RecallTask(IReadOnlyList<int> Context, IReadOnlyList<int> Question, string Answer)
{
    private const int Notes = 4;
    private const int NameLetters = 5;
    private const int Digits = 6;

    /// <summary>Makes a task: code with four lines <c># note NAME = DIGITS</c> in it, and the question <c># recall NAME =</c>.</summary>
    /// <param name="tokenizer">The tokenizer.</param>
    /// <param name="haystack">Ids of a long text of code, of which a random part becomes the context.</param>
    /// <param name="length">Ids of the context.</param>
    /// <param name="random">Chooses part, places, names, digits, and which note is asked for.</param>
    /// <exception cref="ArgumentException">The length leaves no room for code, or the haystack is shorter or has no lines.</exception>
    public static RecallTask Make(TextTokenizer tokenizer, IReadOnlyList<int> haystack, int length, Random random)
    {
        ArgumentNullException.ThrowIfNull(tokenizer);
        ArgumentNullException.ThrowIfNull(haystack);
        ArgumentNullException.ThrowIfNull(random);
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

        int codeLength = length - tokenizer.Prefix.Count - notes.Sum(note => note.Count);
        if (codeLength < 1)
        {
            throw new ArgumentException($"Expected room for code beside {length - codeLength} tokens, but the context has {length}.", nameof(length));
        }

        if (haystack.Count < codeLength)
        {
            throw new ArgumentException($"Expected a text of at least {codeLength} tokens, but got {haystack.Count}.", nameof(haystack));
        }

        int start = random.Next(haystack.Count - codeLength + 1);
        int[] code = [.. haystack.Skip(start).Take(codeLength)];
        int[] lineEnds = [.. Enumerable.Range(0, codeLength).Where(i => tokenizer.BytesOf(code[i]) is [.., (byte)'\n']).Select(i => i + 1)];
        if (lineEnds.Length == 0)
        {
            throw new ArgumentException("Expected a text with ends of lines, where notes can stand, but a part has none.", nameof(haystack));
        }

        int[] places = [.. Enumerable.Range(0, Notes).Select(_ => lineEnds[random.Next(lineEnds.Length)]).Order()];
        List<int> context = [.. tokenizer.Prefix];
        int done = 0;
        for (int i = 0; i < Notes; i++)
        {
            context.AddRange(code[done..places[i]]);
            context.AddRange(notes[i]);
            done = places[i];
        }

        context.AddRange(code[done..]);
        int asked = random.Next(Notes);
        return new RecallTask(context, tokenizer.Encode($"\n# recall {names[asked]} =", addSpecialTokens: false), answers[asked]);
    }

    /// <summary>Whether a continuation of the question gives the digits.</summary>
    public bool IsAnsweredBy(string continuation)
    {
        ArgumentNullException.ThrowIfNull(continuation);
        return continuation.TrimStart(' ').StartsWith(Answer, StringComparison.Ordinal);
    }

    private static string Draw(Random random, string alphabet, int count) => new(random.GetItems(alphabet.AsSpan(), count));
}
