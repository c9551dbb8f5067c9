using System.Text;
using System.Text.RegularExpressions;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>Turns text into a model's tokens and back.</summary>
/// <remarks>
/// Added tokens are found first; the derived class encodes the text between them. Features of a file that are not implemented are
/// refused when the file is read, so that no text gets wrong ids.
/// </remarks>
public abstract class TextTokenizer
{
    private readonly Dictionary<string, AddedToken> _addedByText;
    private readonly Dictionary<int, byte[]> _bytesOf;
    private readonly HashSet<int> _special;
    private readonly Regex? _pattern;
    private readonly Regex? _patternInParts;
    private int _idLimit = int.MaxValue;

    private protected TextTokenizer(
        IReadOnlyList<AddedToken> addedTokens, Dictionary<int, byte[]> bytesOf, IReadOnlyList<int> prefix, IReadOnlyList<int> suffix)
    {
        Prefix = prefix;
        Suffix = suffix;
        _addedByText = addedTokens.ToDictionary(token => token.Content);
        _special = addedTokens.Where(token => token.IsSpecial).Select(token => token.Id).ToHashSet();
        _bytesOf = bytesOf;
        foreach (AddedToken token in addedTokens)
        {
            _bytesOf[token.Id] = Encoding.UTF8.GetBytes(token.Content);
        }

        VocabSize = _bytesOf.Keys.Max() + 1;
        _pattern = AnyOf(addedTokens.Where(token => !token.IsNormalized).Select(token => token.Content));
        _patternInParts = AnyOf(addedTokens.Select(token => token.Content));
    }

    /// <summary>Ids before an encoded text, such as a beginning token.</summary>
    public IReadOnlyList<int> Prefix { get; private set; }

    /// <summary>Whether a leading space of a decoded text was added by the tokenizer, and is omitted.</summary>
    public abstract bool DropsFirstSpace { get; }

    /// <summary>One more than the largest id.</summary>
    public int VocabSize { get; }

    /// <summary>Tokens that are found in a text before anything else.</summary>
    internal IReadOnlyCollection<AddedToken> AddedTokens => _addedByText.Values;

    /// <summary>Ids after an encoded text.</summary>
    public IReadOnlyList<int> Suffix { get; private set; }

    /// <summary>Reads the tokenizer of a checkpoint: its tokenizer.json or, if there is none, its tokenizer.model.</summary>
    /// <remarks>
    /// tokenizer.json's post-processor decides what is added around a text, as in transformers 5. (In transformers 4,
    /// <c>add_bos_token</c> and <c>add_eos_token</c> of tokenizer_config.json override it for Llama's tokenizer classes.) With a
    /// tokenizer.model those two decide. <paramref name="frame"/> overrides both.
    /// </remarks>
    /// <param name="directory">The checkpoint.</param>
    /// <param name="frame">Whether bos_token and eos_token are added to a text; what the files say if null.</param>
    /// <exception cref="FileNotFoundException">It has neither.</exception>
    /// <exception cref="CheckpointException">A part is missing or not valid.</exception>
    /// <exception cref="UnsupportedModelException">A part is of a kind that is not implemented.</exception>
    public static TextTokenizer Load(string directory, TextFrame? frame = null)
    {
        TextTokenizer tokenizer = LoadAsTold(directory);
        if (frame is not null)
        {
            tokenizer.Prefix = frame.Prefix(tokenizer, tokenizer.Prefix, directory);
            tokenizer.Suffix = frame.Suffix(tokenizer, tokenizer.Suffix, directory);
        }

        return tokenizer;
    }

    private static TextTokenizer LoadAsTold(string directory)
    {
        string json = Path.Combine(directory, "tokenizer.json");
        string model = Path.Combine(directory, "tokenizer.model");
        return File.Exists(json) ? TokenizerFile.Load(json)
            : File.Exists(model) ? SentencePieceModelTokenizer.Load(model)
            : throw new FileNotFoundException($"{directory}: expected a tokenizer.json or a tokenizer.model, but there is neither.", json);
    }

    /// <summary>The ids of a text.</summary>
    /// <param name="text">Any text; added tokens in it are recognised. Half surrogate pairs count as U+FFFD.</param>
    /// <param name="addSpecialTokens">Whether to add what the tokenizer puts before and after a text.</param>
    /// <param name="cancellationToken">Cancels the call, which takes time in proportion to n log n of the text's length.</param>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    /// <exception cref="TimeoutException">The tokenizer's regular expression takes too long for this text.</exception>
    public List<int> Encode(string text, bool addSpecialTokens = true, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(text);
        string whole = WithoutHalfPairs(text);
        List<int> ids = Encode(whole, (IEnumerable<Match>?)_pattern?.Matches(whole) ?? [], findsNormalized: true, nameof(text), cancellationToken);
        return addSpecialTokens ? [.. Prefix, .. ids, .. Suffix] : ids;
    }

    /// <summary>The ids of a text of several parts, encoded as one, without what the tokenizer adds around a text.</summary>
    /// <remarks>An added token is only recognised within one part and by its exact letters, not in a normalizer's result.</remarks>
    /// <param name="parts">The parts. Half surrogate pairs count as U+FFFD.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    /// <exception cref="TimeoutException">The tokenizer's regular expression takes too long for this text.</exception>
    public List<int> Encode(IReadOnlyList<string> parts, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(parts);
        string[] texts = [.. parts.Select(WithoutHalfPairs)];
        string whole = string.Concat(texts);
        List<Match> tokens = [];
        int start = 0;
        foreach (string part in texts)
        {
            for (Match? match = _patternInParts?.Match(whole, start, part.Length); match is { Success: true }; match = match.NextMatch())
            {
                tokens.Add(match);
            }

            start += part.Length;
        }

        return Encode(whole, tokens, findsNormalized: false, nameof(parts), cancellationToken);
    }

    /// <summary>The text of ids. Bytes that are not UTF-8 become U+FFFD.</summary>
    /// <param name="ids">Ids of the vocabulary.</param>
    /// <param name="skipSpecialTokens">Whether to omit special tokens.</param>
    /// <exception cref="ArgumentOutOfRangeException">An id is not in the vocabulary.</exception>
    public string Decode(IEnumerable<int> ids, bool skipSpecialTokens = true)
    {
        ArgumentNullException.ThrowIfNull(ids);
        IncrementalDetokenizer detokenizer = new(this, skipSpecialTokens);
        StringBuilder text = new();
        foreach (int id in ids)
        {
            text.Append(detokenizer.Append(id));
        }

        return text.Append(detokenizer.Finish()).ToString();
    }

    /// <summary>The id of an added token, or null if there is none with this text.</summary>
    public int? FindAddedToken(string text) => _addedByText.TryGetValue(text, out AddedToken? token) ? token.Id : null;

    /// <summary>Whether an id is a special token, which is omitted from decoded text.</summary>
    public bool IsSpecial(int id) => _special.Contains(id);

    /// <summary>Whether an id is in the vocabulary.</summary>
    public bool HasToken(int id) => _bytesOf.ContainsKey(id);

    /// <summary>The bytes that an id stands for: any part of UTF-8 text.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The id is not in the vocabulary.</exception>
    public ReadOnlySpan<byte> BytesOf(int id) => _bytesOf.TryGetValue(id, out byte[]? bytes)
        ? bytes
        : throw new ArgumentOutOfRangeException(nameof(id), id, "The tokenizer has no token with this id.");

    /// <summary>Makes the tokenizer refuse texts with added tokens from a given id on, which a model may lack.</summary>
    /// <param name="vocabSize">The model's ids are below this.</param>
    /// <param name="directory">The checkpoint.</param>
    /// <exception cref="CheckpointException">Other tokens have such ids, or tokens that are added around a text.</exception>
    internal void LimitIds(int vocabSize, string directory)
    {
        HashSet<int> added = [.. _addedByText.Values.Select(token => token.Id)];
        if (_bytesOf.Keys.Any(id => id >= vocabSize && !added.Contains(id)) || Prefix.Concat(Suffix).Any(id => id >= vocabSize))
        {
            throw new CheckpointException(
                $"expected ids below {vocabSize}, the model's vocab_size, but the tokenizer's go up to {VocabSize - 1}.", directory);
        }

        _idLimit = vocabSize;
    }

    /// <summary>Adds the ids of a text without added tokens.</summary>
    /// <param name="text">The text, not empty.</param>
    /// <param name="isFirst">Whether it begins the whole text.</param>
    /// <param name="findsNormalized">Whether to look for added tokens in the normalised text.</param>
    /// <param name="ids">Receives the ids.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    private protected abstract void EncodePlain(
        string text, bool isFirst, bool findsNormalized, List<int> ids, CancellationToken cancellationToken);

    /// <summary>An expression that matches any of several texts, or null if there are none.</summary>
    internal static Regex? AnyOf(IEnumerable<string> texts)
    {
        // Of two that begin at the same index, the longer wins.
        string[] longestFirst = [.. texts.OrderByDescending(text => text.Length).Select(Regex.Escape)];
        return longestFirst.Length == 0
            ? null
            : new Regex(string.Join('|', longestFirst), RegexOptions.CultureInvariant | RegexOptions.Compiled);
    }

    private List<int> Encode(
        string text, IEnumerable<Match> tokens, bool findsNormalized, string parameter, CancellationToken cancellationToken)
    {
        List<int> ids = [];
        int end = 0;
        foreach (Match token in tokens)
        {
            Plain(end, token.Index);
            ids.Add(_addedByText[token.Value].Id);
            end = token.Index + token.Length;
        }

        Plain(end, text.Length);
        if (VocabSize > _idLimit && ids.FindIndex(id => id >= _idLimit) is int past and >= 0)
        {
            throw new ArgumentException(
                $"The text has the token '{Encoding.UTF8.GetString(BytesOf(ids[past]))}', but its id {ids[past]} is not below {_idLimit}, "
                + "the model's vocab_size, so the model has no embedding for it. Remove the token from the text.", parameter);
        }

        return ids;

        void Plain(int from, int to)
        {
            if (from < to)
            {
                EncodePlain(text[from..to], isFirst: from == 0, findsNormalized, ids, cancellationToken);
            }
        }
    }

    private static string WithoutHalfPairs(string text)
    {
        for (int i = 0; i < text.Length; i++)
        {
            if (char.IsSurrogatePair(text, i))
            {
                i++;
            }
            else if (char.IsSurrogate(text[i]))
            {
                return Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(text));
            }
        }

        return text;
    }
}
