using System.Text;
using System.Text.RegularExpressions;
using Microsoft.ML.Tokenizers;

namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>
/// BPE over characters, with bytes for those that the vocabulary lacks, as in the tokenizer.json of Llama 2 and Mistral.
/// </summary>
internal sealed class ByteFallbackTokenizer : TextTokenizer
{
    private readonly TokenizerFile _file;
    private readonly ByteFallbackRules _rules;
    private readonly int[] _byteIds;
    private readonly BpeTokenizer _bpe;

    // Added tokens that are found in normalised text, as the normalizer writes them.
    private readonly Dictionary<string, int> _normalizedTokens;
    private readonly Regex? _normalizedPattern;

    public ByteFallbackTokenizer(TokenizerFile file, ByteFallbackRules rules)
        : this(file, rules, ByteFallback.Ids(file.Vocabulary, file.Path))
    {
    }

    private ByteFallbackTokenizer(TokenizerFile file, ByteFallbackRules rules, int[] byteIds)
        : base(file.AddedTokens, ByteFallback.Bytes(file.Vocabulary, byteIds))
    {
        _file = file;
        _rules = rules;
        _byteIds = byteIds;
        _bpe = BpeTokenizer.Create(new BpeOptions(file.Vocabulary) { Merges = file.Merges });
        _normalizedTokens = file.AddedTokens.Where(token => token.IsNormalized)
            .ToDictionary(token => rules.WithSpaces(token.Content, isFirst: true), token => token.Id);
        _normalizedPattern = AnyOf(_normalizedTokens.Keys);
    }

    public override IReadOnlyList<int> Prefix => _file.Prefix;

    public override bool DropsFirstSpace => _rules.DropsFirstSpace;

    private protected override IReadOnlyList<int> Suffix => _file.Suffix;

    private protected override void EncodePlain(string text, bool isFirst, List<int> ids)
    {
        string spaced = _rules.WithSpaces(text, isFirst);
        int end = 0;
        for (Match? match = _normalizedPattern?.Match(spaced); match is { Success: true }; match = match.NextMatch())
        {
            EncodeWords(spaced[end..match.Index], ids);
            ids.Add(_normalizedTokens[match.Value]);
            end = match.Index + match.Length;
        }

        EncodeWords(spaced[end..], ids);
    }

    private void EncodeWords(string spaced, List<int> ids)
    {
        int start = 0;
        for (int i = 1; _rules.SplitsAtSpaces && i < spaced.Length; i++)
        {
            if (spaced[i] == ByteFallback.Space)
            {
                EncodeWord(spaced[start..i], ids);
                start = i;
            }
        }

        EncodeWord(spaced[start..], ids);
    }

    // No merge has a part that is a byte, so that what stands between unknown characters can be merged by itself.
    private void EncodeWord(string word, List<int> ids)
    {
        int known = 0;
        Span<byte> utf8 = stackalloc byte[4];
        for (int i = 0; i < word.Length;)
        {
            int length = char.IsSurrogatePair(word, i) ? 2 : 1;
            if (!_file.Vocabulary.ContainsKey(word.Substring(i, length)))
            {
                Merge(word[known..i], ids);
                int count = Encoding.UTF8.GetBytes(word.AsSpan(i, length), utf8);
                foreach (byte value in utf8[..count])
                {
                    ids.Add(_byteIds[value]);
                }

                known = i + length;
            }

            i += length;
        }

        Merge(word[known..], ids);
    }

    private void Merge(string word, List<int> ids)
    {
        if (word.Length > 0)
        {
            ids.AddRange(_bpe.EncodeToIds(word, considerPreTokenization: false, considerNormalization: false));
        }
    }
}
