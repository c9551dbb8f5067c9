using System.Runtime.InteropServices;
using System.Text;

namespace Mustafar.Models.Tokenizer;

/// <summary>Byte-level BPE, as in GPT-2, Llama 3 and Qwen: a text is split into pieces, and the bytes of each piece are merged.</summary>
internal sealed class ByteLevelTokenizer : TextTokenizer
{
    private readonly TokenizerFile _file;
    private readonly ByteLevelRules _rules;
    private readonly BytePairMerger _merger;
    private readonly int[] _byteIds;
    private readonly NormalizedTokens _normalizedTokens;

    public ByteLevelTokenizer(TokenizerFile file, ByteLevelRules rules)
        : base(file.AddedTokens, Bytes(file), file.Prefix, file.Suffix)
    {
        _file = file;
        _rules = rules;
        _merger = file.MakeMerger();
        _normalizedTokens = new NormalizedTokens(file.AddedTokens, Normalize);
        _byteIds = [.. ByteLevelAlphabet.Characters.ToArray().Select(character => file.Vocabulary.GetValueOrDefault(character.ToString(), -1))];
    }

    public override bool DropsFirstSpace => false;

    private protected override void EncodePlain(
        string text, bool isFirst, bool findsNormalized, List<int> ids, CancellationToken cancellationToken)
    {
        _normalizedTokens.Encode(Normalize(text), findsNormalized, ids, part => EncodePieces(part, ids, cancellationToken));
    }

    private void EncodePieces(string text, List<int> ids, CancellationToken cancellationToken)
    {
        List<int> symbols = [];
        foreach (string part in _rules.Split(text, cancellationToken))
        {
            cancellationToken.ThrowIfCancellationRequested();
            if (_file.IgnoreMerges && _file.Vocabulary.TryGetValue(InAlphabet(part), out int id))
            {
                ids.Add(id);
            }
            else
            {
                symbols.Clear();
                UnknownToken.Run run = _file.Unknown.Start(symbols);
                foreach (byte value in Encoding.UTF8.GetBytes(part))
                {
                    if (_byteIds[value] >= 0)
                    {
                        run.Add(_byteIds[value]);
                    }
                    else
                    {
                        run.AddUnknown();
                    }
                }

                run.Finish();
                _merger.Merge(CollectionsMarshal.AsSpan(symbols), ids, cancellationToken);
            }
        }
    }

    // .NET rejects the noncharacter U+FFFE, which combines with nothing.
    private string Normalize(string text) => _rules.Normalization is NormalizationForm form
        ? string.Join('\uFFFE', text.Split('\uFFFE').Select(part => part.Normalize(form)))
        : text;

    private static Dictionary<int, byte[]> Bytes(TokenizerFile file)
    {
        Dictionary<int, byte[]> bytesOf = [];
        foreach ((string token, int id) in file.Vocabulary)
        {
            if (ByteLevelAlphabet.BytesOf(token) is byte[] bytes)
            {
                bytesOf[id] = bytes;
            }
        }

        return bytesOf;
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
