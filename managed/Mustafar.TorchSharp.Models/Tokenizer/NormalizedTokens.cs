using System.Text.RegularExpressions;

namespace Mustafar.Models.Tokenizer;

/// <summary>Added tokens that are found in normalised text, each in the form that the normalizer gives it.</summary>
internal sealed class NormalizedTokens
{
    private readonly Dictionary<string, int> _ids = [];
    private readonly Regex? _pattern;

    /// <summary>Collects those of a tokenizer.</summary>
    /// <param name="addedTokens">All added tokens.</param>
    /// <param name="normalize">Applies the normalizer to a text.</param>
    public NormalizedTokens(IEnumerable<AddedToken> addedTokens, Func<string, string> normalize)
    {
        foreach (AddedToken token in addedTokens.Where(token => token.IsNormalized))
        {
            _ids[normalize(token.Content)] = token.Id;
        }

        _pattern = TextTokenizer.AnyOf(_ids.Keys);
    }

    /// <summary>Adds the ids of the tokens in a text, and encodes the parts between them.</summary>
    /// <param name="text">Normalised text.</param>
    /// <param name="areFound">Whether to look for such tokens; if not, the text is one part.</param>
    /// <param name="ids">Receives the ids.</param>
    /// <param name="encode">Adds the ids of a non-empty part.</param>
    public void Encode(string text, bool areFound, List<int> ids, Action<string> encode)
    {
        int end = 0;
        for (Match? match = areFound ? _pattern?.Match(text) : null; match is { Success: true }; match = match.NextMatch())
        {
            Plain(end, match.Index);
            ids.Add(_ids[match.Value]);
            end = match.Index + match.Length;
        }

        Plain(end, text.Length);

        void Plain(int from, int to)
        {
            if (from < to)
            {
                encode(text[from..to]);
            }
        }
    }
}
