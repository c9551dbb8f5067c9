namespace Mustafar.Models.Tokenizer;

/// <summary>
/// BPE over characters, with bytes for characters that the vocabulary lacks, as in the tokenizer.json of Llama 2 and Mistral.
/// </summary>
internal sealed class ByteFallbackTokenizer : TextTokenizer
{
    private readonly ByteFallbackRules _rules;
    private readonly CharacterMerger _merger;

    private readonly NormalizedTokens _normalizedTokens;

    public ByteFallbackTokenizer(TokenizerFile file, ByteFallbackRules rules)
        : this(file, rules, ByteFallback.Ids(file.Vocabulary))
    {
    }

    private ByteFallbackTokenizer(TokenizerFile file, ByteFallbackRules rules, int[] byteIds)
        : base(file.AddedTokens, ByteFallback.Bytes(file.Vocabulary, byteIds), file.Prefix, file.Suffix)
    {
        _rules = rules;
        _merger = new CharacterMerger(file.Vocabulary, [], byteIds, file.MakeMerger(), file.Unknown);
        _normalizedTokens = new NormalizedTokens(file.AddedTokens, text => rules.WithSpaces(text, isFirst: true));
    }

    public override bool DropsFirstSpace => _rules.DropsFirstSpace;

    private protected override void EncodePlain(
        string text, bool isFirst, bool findsNormalized, List<int> ids, CancellationToken cancellationToken)
    {
        _normalizedTokens.Encode(_rules.WithSpaces(text, isFirst), findsNormalized, ids, part => EncodeWords(part, ids, cancellationToken));
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
