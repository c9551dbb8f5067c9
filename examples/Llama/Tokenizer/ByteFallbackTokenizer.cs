using System.Text.RegularExpressions;

namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>
/// BPE over characters, with bytes for those that the vocabulary lacks, as in the tokenizer.json of Llama 2 and Mistral.
/// </summary>
internal sealed class ByteFallbackTokenizer : TextTokenizer
{
    private readonly TokenizerFile _file;
    private readonly ByteFallbackRules _rules;
    private readonly CharacterMerger _merger;

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
        _merger = new CharacterMerger(file.Vocabulary, [], byteIds, file.MakeMerger());
        _normalizedTokens = file.AddedTokens.Where(token => token.IsNormalized)
            .ToDictionary(token => rules.WithSpaces(token.Content, isFirst: true), token => token.Id);
        _normalizedPattern = AnyOf(_normalizedTokens.Keys);
    }

    public override IReadOnlyList<int> Prefix => _file.Prefix;

    public override bool DropsFirstSpace => _rules.DropsFirstSpace;

    private protected override IReadOnlyList<int> Suffix => _file.Suffix;

    private protected override void EncodePlain(string text, bool isFirst, List<int> ids, CancellationToken cancellationToken)
    {
        string spaced = _rules.WithSpaces(text, isFirst);
        int end = 0;
        for (Match? match = _normalizedPattern?.Match(spaced); match is { Success: true }; match = match.NextMatch())
        {
            EncodeWords(spaced.AsSpan(end..match.Index), ids, cancellationToken);
            ids.Add(_normalizedTokens[match.Value]);
            end = match.Index + match.Length;
        }

        EncodeWords(spaced.AsSpan(end), ids, cancellationToken);
    }

    private void EncodeWords(ReadOnlySpan<char> spaced, List<int> ids, CancellationToken cancellationToken)
    {
        int start = 0;
        for (int i = 1; _rules.SplitsAtSpaces && i < spaced.Length; i++)
        {
            if (spaced[i] == ByteFallback.Space)
            {
                _merger.Encode(spaced[start..i], ids, cancellationToken);
                start = i;
            }
        }

        _merger.Encode(spaced[start..], ids, cancellationToken);
    }
}
