using System.Text;
using System.Text.RegularExpressions;
using Microsoft.ML.Tokenizers;
using Mustafar.Examples.Llama.Checkpoint;

namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>A byte-level BPE tokenizer, as Hugging Face's tokenizer.json describes it.</summary>
/// <remarks>
/// Added tokens are found first, the text between them is cut into pieces, and Microsoft.ML.Tokenizers merges the bytes of each piece.
/// </remarks>
public sealed class ByteLevelTokenizer
{
    private readonly TokenizerFile _file;
    private readonly BpeTokenizer _bpe;
    private readonly Dictionary<string, AddedToken> _addedByText;
    private readonly Dictionary<int, byte[]> _bytesOf = [];
    private readonly HashSet<int> _special;
    private readonly Regex? _addedPattern;

    private ByteLevelTokenizer(TokenizerFile file)
    {
        _file = file;
        _bpe = BpeTokenizer.Create(new BpeOptions(file.Vocabulary) { Merges = file.Merges, ByteLevel = true });
        _addedByText = file.AddedTokens.ToDictionary(token => token.Content);
        _special = file.AddedTokens.Where(token => token.IsSpecial).Select(token => token.Id).ToHashSet();
        foreach ((string token, int id) in file.Vocabulary)
        {
            if (ByteLevelAlphabet.BytesOf(token) is byte[] bytes)
            {
                _bytesOf[id] = bytes;
            }
        }

        foreach (AddedToken token in file.AddedTokens)
        {
            _bytesOf[token.Id] = Encoding.UTF8.GetBytes(token.Content);
        }

        if (_addedByText.Count > 0)
        {
            // Of two tokens that begin at one place, the longer wins.
            IEnumerable<string> longestFirst = _addedByText.Keys.OrderByDescending(text => text.Length).Select(Regex.Escape);
            _addedPattern = new Regex(string.Join('|', longestFirst), RegexOptions.CultureInvariant | RegexOptions.Compiled);
        }
    }

    /// <summary>Ids that stand in front of an encoded text, such as the one that begins a text.</summary>
    public IReadOnlyList<int> Prefix => _file.Prefix;

    /// <summary>One more than the largest id.</summary>
    public int VocabSize => _bytesOf.Keys.Max() + 1;

    /// <summary>Reads a tokenizer.json.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">A part is missing or not valid.</exception>
    /// <exception cref="UnsupportedModelException">A part is of a kind that is not implemented.</exception>
    public static ByteLevelTokenizer Load(string path) => new(TokenizerFile.Load(path));

    /// <summary>The ids of a text.</summary>
    /// <param name="text">Any text; added tokens in it are recognised. Half surrogate pairs count as U+FFFD.</param>
    /// <param name="addSpecialTokens">Whether to add what the tokenizer puts in front of and behind a text.</param>
    public List<int> Encode(string text, bool addSpecialTokens = true)
    {
        ArgumentNullException.ThrowIfNull(text);
        List<int> ids = addSpecialTokens ? [.. _file.Prefix] : [];
        string whole = WithoutHalfPairs(text);
        int end = 0;
        if (_addedPattern is not null)
        {
            foreach (ValueMatch match in _addedPattern.EnumerateMatches(whole))
            {
                EncodePlain(whole[end..match.Index], ids);
                end = match.Index + match.Length;
                ids.Add(_addedByText[whole[match.Index..end]].Id);
            }
        }

        EncodePlain(whole[end..], ids);
        if (addSpecialTokens)
        {
            ids.AddRange(_file.Suffix);
        }

        return ids;
    }

    /// <summary>The text of ids. Bytes that are not UTF-8 become U+FFFD.</summary>
    /// <param name="ids">Ids of the vocabulary.</param>
    /// <param name="skipSpecialTokens">Whether to leave out special tokens.</param>
    /// <exception cref="ArgumentOutOfRangeException">An id is not in the vocabulary.</exception>
    public string Decode(IEnumerable<int> ids, bool skipSpecialTokens = true)
    {
        ArgumentNullException.ThrowIfNull(ids);
        using MemoryStream bytes = new();
        foreach (int id in ids)
        {
            if (!skipSpecialTokens || !IsSpecial(id))
            {
                bytes.Write(BytesOf(id));
            }
        }

        return Encoding.UTF8.GetString(bytes.GetBuffer(), 0, (int)bytes.Length);
    }

    /// <summary>Whether an id is a special token, which is left out of decoded text.</summary>
    public bool IsSpecial(int id) => _special.Contains(id);

    /// <summary>The bytes that an id stands for: any part of UTF-8 text.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The id is not in the vocabulary.</exception>
    public ReadOnlySpan<byte> BytesOf(int id) => _bytesOf.TryGetValue(id, out byte[]? bytes)
        ? bytes
        : throw new ArgumentOutOfRangeException(nameof(id), id, "The tokenizer has no token of this id.");

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

    private void EncodePlain(string text, List<int> ids)
    {
        if (text.Length == 0)
        {
            return;
        }

        if (_file.AddPrefixSpace && text[0] != ' ')
        {
            text = ' ' + text;
        }

        foreach (Range piece in _file.Splitter.Split(text))
        {
            string part = text[piece];
            if (_file.IgnoreMerges && _file.Vocabulary.TryGetValue(InAlphabet(part), out int id))
            {
                ids.Add(id);
            }
            else
            {
                ids.AddRange(_bpe.EncodeToIds(part, considerPreTokenization: false, considerNormalization: false));
            }
        }
    }

    private static string InAlphabet(string text)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        return string.Create(bytes.Length, bytes, (characters, source) =>
        {
            for (int i = 0; i < source.Length; i++)
            {
                characters[i] = ByteLevelAlphabet.CharacterOf(source[i]);
            }
        });
    }
}
