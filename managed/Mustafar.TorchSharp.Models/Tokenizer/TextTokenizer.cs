using System.Text;
using System.Text.RegularExpressions;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>Turns text into a model's tokens and back.</summary>
/// <remarks>
/// Added tokens are found first; the text between them is encoded as the derived class knows. What a file asks for and is not
/// implemented is refused when the file is read, so that no text gets wrong ids.
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

    /// <summary>Ids that stand in front of an encoded text, such as the one that begins a text.</summary>
    public IReadOnlyList<int> Prefix { get; private set; }

    /// <summary>Whether a space that begins a decoded text is the tokenizer's own, and left out.</summary>
    public abstract bool DropsFirstSpace { get; }

    /// <summary>One more than the largest id.</summary>
    public int VocabSize { get; }

    /// <summary>Tokens that are found in a text before anything else.</summary>
    internal IReadOnlyCollection<AddedToken> AddedTokens => _addedByText.Values;

    /// <summary>Ids that stand behind an encoded text.</summary>
    public IReadOnlyList<int> Suffix { get; private set; }

    /// <summary>Reads the tokenizer of a checkpoint: its tokenizer.json, or where there is none, its tokenizer.model.</summary>
    /// <remarks>
    /// What stands around a text is what tokenizer.json's post-processor says, as in transformers 5. transformers 4 lets
    /// <c>add_bos_token</c> and <c>add_eos_token</c> of tokenizer_config.json overrule it for Llama's tokenizer classes. Beside a
    /// tokenizer.model they are followed. <paramref name="frame"/> overrules both.
    /// </remarks>
    /// <param name="directory">The checkpoint.</param>
    /// <param name="frame">Whether a text gets the tokens that begin and end it; what the files say if null.</param>
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
    /// <param name="addSpecialTokens">Whether to add what the tokenizer puts in front of and behind a text.</param>
    /// <param name="cancellationToken">Stops the work, which takes time in proportion to n log n of the text's length.</param>
    /// <exception cref="OperationCanceledException">It was stopped.</exception>
    /// <exception cref="TimeoutException">The tokenizer's regular expression takes too long for this text.</exception>
    public List<int> Encode(string text, bool addSpecialTokens = true, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(text);
        string whole = WithoutHalfPairs(text);
        List<int> ids = Encode(whole, (IEnumerable<Match>?)_pattern?.Matches(whole) ?? [], findsNormalized: true, nameof(text), cancellationToken);
        return addSpecialTokens ? [.. Prefix, .. ids, .. Suffix] : ids;
    }

    /// <summary>The ids of a text of several parts, encoded as one, without what the tokenizer puts around a text.</summary>
    /// <remarks>An added token is recognised within a part only, and by its very letters: not in what a normalizer makes of others.</remarks>
    /// <param name="parts">The parts. Half surrogate pairs count as U+FFFD.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <exception cref="OperationCanceledException">It was stopped.</exception>
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
    /// <param name="skipSpecialTokens">Whether to leave out special tokens.</param>
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

    /// <summary>The id of an added token, or null if there is none of this text.</summary>
    public int? FindAddedToken(string text) => _addedByText.TryGetValue(text, out AddedToken? token) ? token.Id : null;

    /// <summary>Whether an id is a special token, which is left out of decoded text.</summary>
    public bool IsSpecial(int id) => _special.Contains(id);

    /// <summary>Whether an id is in the vocabulary.</summary>
    public bool HasToken(int id) => _bytesOf.ContainsKey(id);

    /// <summary>The bytes that an id stands for: any part of UTF-8 text.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The id is not in the vocabulary.</exception>
    public ReadOnlySpan<byte> BytesOf(int id) => _bytesOf.TryGetValue(id, out byte[]? bytes)
        ? bytes
        : throw new ArgumentOutOfRangeException(nameof(id), id, "The tokenizer has no token with this id.");

    /// <summary>Has texts refused that have added tokens from a given id on, which a model may lack.</summary>
    /// <param name="vocabSize">The model's ids are below this.</param>
    /// <param name="directory">The checkpoint.</param>
    /// <exception cref="CheckpointException">Other tokens are past it, or those that stand around a text.</exception>
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
    /// <param name="findsNormalized">Whether added tokens are found in what the normalizer makes of the text.</param>
    /// <param name="ids">Where to add.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    private protected abstract void EncodePlain(
        string text, bool isFirst, bool findsNormalized, List<int> ids, CancellationToken cancellationToken);

    /// <summary>An expression that matches any of several texts, or null if there are none.</summary>
    internal static Regex? AnyOf(IEnumerable<string> texts)
    {
        // Of two that begin at one place, the longer wins.
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
